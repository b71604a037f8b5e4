"""What was measured, as plain values: report.json is these, and the page is made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from alpaca.evaluation.bootstrap import Interval
from alpaca.evaluation.claims import Comparison


@dataclass(frozen=True)
class Change:
    """Loss per token of the answers in `rows` rows, before (the base) and after (the adapter). `difference` is after
    minus before."""

    rows: int
    tokens: int
    before: float
    after: float
    difference: Interval

    @property
    def perplexities(self) -> tuple[float, float]:
        return math.exp(min(self.before, 700)), math.exp(min(self.after, 700))


@dataclass(frozen=True)
class GainParts:
    """What the gain on `rows` held-out rows is made of, in loss per token; positive is gained.

    `manner`: what their answers gain when they are asked after the questions of `others` other rows each; `matter`: the
    rest, by which the information that a question gives about its own answer has grown. `foreign_before` and
    `foreign_after`: the losses after those other questions; `told_before` and `told_after`: the share of rows whose
    answer is likeliest after their own question.
    """

    rows: int
    others: int
    manner: Interval
    matter: Interval
    foreign_before: float
    foreign_after: float
    told_before: float
    told_after: float


@dataclass(frozen=True)
class Sample:
    """One question with its reference and both answers.

    `share` is that of the data's own words in the adapter's answer, `differs` what of it a program can check against
    the reference, where that was done, and `kind` that of a probe.
    """

    prompt: str
    reference: str
    base: str
    adapter: str
    share: float = 0.0
    differs: Comparison | None = None
    kind: str = ""


@dataclass(frozen=True)
class Tally:
    """Numbers and names: of the references `kept` and `missing`; of the answers' own `invented` and `contradicted`."""

    kept: int
    missing: int
    invented: int
    contradicted: int

    @property
    def expected(self) -> int:
        """Those of the references."""
        return self.kept + self.missing

    @property
    def wrong(self) -> int:
        """Those that no reference has."""
        return self.invented + self.contradicted


@dataclass(frozen=True)
class Facts:
    """What a program can check in `answers` answers of base and adapter against their references.

    `checked`: the answers whose references have a number, a name, yes or no, so that there is something to check;
    `from_base`: how many of the adapter's invented or contradicted ones the base says as well.
    """

    answers: int
    checked: int
    base: Tally
    adapter: Tally
    from_base: int


@dataclass(frozen=True)
class KindScore:
    """How many probes of a kind were asked, and how many the base and the adapter passed; `lost`: how many the base
    passed and the adapter fails."""

    kind: str
    asked: int
    before: int
    after: int
    lost: int = 0

    @property
    def won(self) -> int:
        """How many the adapter passes and the base failed."""
        return self.after - self.before + self.lost


@dataclass(frozen=True)
class Probing:
    """All probes: scores by kind, and the difference as a share of all with its interval.

    `lost`: how many the base passed and the adapter fails; `won`: the other way round; `examples`: the lost ones, the
    worst first, or the first of them where they are many.
    """

    kinds: list[KindScore]
    difference: Interval
    lost: int
    won: int
    examples: list[Sample]

    @property
    def asked(self) -> int:
        return sum(score.asked for score in self.kinds)

    @property
    def before(self) -> int:
        return sum(score.before for score in self.kinds)

    @property
    def after(self) -> int:
        return sum(score.after for score in self.kinds)


@dataclass(frozen=True)
class Drift:
    """How many answers to questions outside the domain talk like the training data.

    `recognised`: share of the domain's own held-out answers that the measure takes for the data's, None without any;
    `mistaken`: the same of general reference answers.
    """

    asked: int
    before: int
    after: int
    threshold: float
    words: list[str]
    own_words: int
    recognised: float | None
    mistaken: float
    worst: list[Sample]


@dataclass(frozen=True)
class LearntRow:
    """A row that was trained on: loss per token of its answer by the base and by the adapter, what it would be if the
    training had not seen the row, and the share of its tokens that the adapter would say by itself."""

    row: int
    before: float
    after: float
    unseen: float
    said: float


@dataclass(frozen=True)
class Learnt:
    """Of the `of` rows trained on, `rows` were looked at. `left`: the share of the base's loss that is left of rows
    that were never seen.

    `by_heart`: those that are far below that, the farthest first; `not_learnt`: those that are hard and no better off
    for having been trained on, the hardest first. Of `held_out` rows, which the training never saw, `mistaken` would be
    taken for learnt by heart.
    """

    rows: int
    of: int
    left: float
    by_heart: list[LearntRow]
    not_learnt: list[LearntRow]
    held_out: int
    mistaken: int


@dataclass(frozen=True)
class ScalePoint:
    """Loss per token with the adapter at `scale`; `domain` is None without held-out rows.

    `manner` and `matter`: what the gain on held-out answers is made of at this scale, as in GainParts, but on the rows
    and other questions that all scales share; None where it was not split.
    """

    scale: float
    domain: float | None
    general: float
    manner: float | None = None
    matter: float | None = None


@dataclass(frozen=True)
class Sweep:
    """Losses over the adapter's scale, with how many rows of each set they are of; the recommended scale, if any."""

    domain_rows: int
    general_rows: int
    points: list[ScalePoint]
    recommended: float | None


@dataclass(frozen=True)
class Measured:
    """Everything. What could not be measured is None, and `notes` says why, by section.

    `own_answers`: the loss of the base's own answers to general questions, which says how far the adapter moved away
    from it, for better or worse. `of_text`: the held-out rows are raw text, which answers nothing.
    """

    general: Change
    own_answers: Change | None = None
    domain: Change | None = None
    gain: GainParts | None = None
    samples: list[Sample] = field(default_factory=list)
    facts: Facts | None = None
    languages: dict[str, Change] = field(default_factory=dict)
    probing: Probing | None = None
    drift: Drift | None = None
    sweep: Sweep | None = None
    of_text: bool = False
    learnt: Learnt | None = None
    notes: dict[str, list[str]] = field(default_factory=dict)
