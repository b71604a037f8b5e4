"""All measurements of one adapter or tuned model: answers first, then, with the engine gone from memory, losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from alpaca.adapter.base_template import base_template
from alpaca.adapter.card import Card, check_special_tokens
from alpaca.base.headers import read_config
from alpaca.base.load import load_tokenizer
from alpaca.base.precision import Choice, choose_precision
from alpaca.data.languages import UNCLEAR, languages_of
from alpaca.device import pick_device, release_memory
from alpaca.errors import BadAdapter
from alpaca.evaluation.answers import DOMAIN, GENERAL, TOKENS, Asked, ask_all, make_questions
from alpaca.evaluation.bootstrap import paired_difference
from alpaca.evaluation.budget import ANSWER_SHARE, OTHERS, Budget, LossPlan, plan_losses
from alpaca.evaluation.gain import gain_parts, notes_on
from alpaca.evaluation.learnt import MOST, SHARE, look
from alpaca.evaluation.losses import RowLosses, Scored, row_losses
from alpaca.evaluation.probes import KINDS, Probe, passes
from alpaca.evaluation.results import Change, Drift, GainParts, KindScore, Measured, Probing, Sample
from alpaca.evaluation.scales import AtScale, Rows, measure_at, sweep_of
from alpaca.evaluation.sets import Domain, General, spread
from alpaca.evaluation.tuned import Held, Tuned
from alpaca.evaluation.tuned_adapter import TunedAdapter
from alpaca.evaluation.tuned_model import TunedModel
from alpaca.evaluation.vocabulary import learn_vocabulary
from alpaca.evaluation.whole import is_whole
from alpaca.packed.scoring import seconds_per_token
from alpaca.progress import Say, progress
from alpaca.prompts.encode import Encoded, accepted, encode_examples
from alpaca.prompts.example import Example
from alpaca.prompts.find import template_from_card
from alpaca.prompts.foreign import ForeignRows, foreign_rows
from alpaca.prompts.template import Template
from alpaca.serving.limits import EngineLimits
from alpaca.words import tagged

CUTOFF = 1024  # tokens, where no card says what the run had
SLOTS = {"cpu": 16, "cuda": 64}  # answers made at the same time
LEAST_CONTEXT = 1024
FEWEST_OF_A_LANGUAGE = 8
MOST_TEXTS = 5_000  # training answers that the data's own words are taken from
SHOWN_LOST, SHOWN_WORST, SHOWN_WORDS = 24, 5, 40
WORST_FIRST = ("knowledge", "arithmetic", "logic", "identity", "format")  # of lost tests


@dataclass(frozen=True)
class Subject:
    """What was tuned and its base, checked against each other, with what both are asked in."""

    tuned: Tuned
    base: Path
    precision: Choice
    device: torch.device
    tokenizer: Any
    template: Template
    cutoff_len: int

    @property
    def card(self) -> Card | None:
        return self.tuned.card

    @property
    def held(self) -> Held:
        return Held(self.base, self.precision.precision, self.device, self.tokenizer, self.template)


def open_subject(folder: Path, base: Path, precision: str, beside: Sequence[Path] = ()) -> Subject:
    """Check an adapter's files, or a model's, against the base; nothing heavy is loaded. `beside`: where adapters may
    be that it belongs together with, if not beside it. Raises the errors of all."""
    tuned: Tuned = TunedModel.of(folder, base) if is_whole(folder) else TunedAdapter.of(folder, base, beside)
    device = pick_device()
    choice = choose_precision(base, precision, device)
    tokenizer = load_tokenizer(base)
    template, _ = base_template(base, tokenizer)
    cutoff: object = None
    if (card := tuned.card) is not None:
        check_special_tokens(card, tokenizer)
        template = template_from_card(card.template, tokenizer)
        cutoff = card.settings.get("cutoff_len")
    longest = read_config(base).get("max_position_embeddings")
    cutoff = min(cutoff if isinstance(cutoff, int) else CUTOFF, longest if isinstance(longest, int) else CUTOFF)
    return Subject(tuned, base, choice, device, tokenizer, template, cutoff)


def measure(
    subject: Subject, domain: Domain, general: General, probes: Sequence[Probe], budget: Budget, say: Say
) -> Measured:
    """Answers, then losses at every scale; as many rows as the budget allows. Raises AlpacaError."""
    domain = replace(domain, held_out=accepted(subject.template, domain.held_out))
    general = replace(general, measuring=accepted(subject.template, general.measuring))
    notes: dict[str, list[str]] = {"domain": list(domain.notes), "general": list(general.notes)}
    asked = _answers(subject, domain, general, probes, budget, say, notes)
    release_memory(subject.device)
    losses = _losses(subject, domain, general, asked, budget, say, notes)
    release_memory(subject.device)
    if subject.tuned.unscaled:
        notes["sweep"] = [subject.tuned.unscaled]
    samples = [_sample(answer) for answer in asked if answer.question.topic == DOMAIN]
    drift = _drift(domain, general, asked, notes)
    of_text = bool(domain.held_out) and all(row.raw for row in domain.held_out)
    return Measured(**losses, samples=samples, probing=probing(asked), drift=drift, of_text=of_text, notes=notes)


# --- losses -------------------------------------------------------------------------------------------------------
def _losses(
    subject: Subject,
    domain: Domain,
    general: General,
    asked: Sequence[Asked],
    budget: Budget,
    say: Say,
    notes: dict[str, list[str]],
) -> dict[str, Any]:
    """The fields of Measured that are losses."""
    ours, theirs = (_encode(subject, rows) for rows in (domain.held_out, general.measuring))
    own = _own_answers(subject, asked)
    what = f"{subject.base.name} and the saved {subject.tuned.noun}"
    say(tagged("report", f"loading {what} ({subject.precision.precision})"))
    model = subject.tuned.scoring(subject.held)
    pace = 0.0 if budget.seconds is None else _pace(model, theirs)
    plan = _plan(pace, ours, theirs, own, budget.left(1 - SHARE if domain.train else 1.0))
    scales = (0.0, 1.0) if subject.tuned.unscaled else plan.scales
    foreign = _foreign(subject, domain, ours, plan)
    notes["gain"] = notes_on(ours[: plan.domain], foreign, plan.others, OTHERS)
    rows = Rows(ours[: plan.domain], foreign, theirs[: plan.general])
    total = sum(rows.at(scale).tokens for scale in scales) + 2 * sum(map(len, own))
    with progress(tagged("report", "losses"), total, "token", say) as done:
        points, own_losses = {}, {}
        for scale in sorted(scales, key=lambda scale: (scale not in (0.0, 1.0), -scale)):
            points[scale] = measure_at(model, rows, scale, done)
            if scale in (0.0, 1.0):
                own_losses[scale] = row_losses(model, own, scale, done)
    before, after = points[0.0], points[1.0]
    trained = _encode(subject, accepted(subject.template, spread(domain.train)[:MOST]))
    told = before.domain, after.domain
    learnt, notes["learnt"] = look(model, trained, len(domain.train), told, pace, budget.left(), say)
    return {
        "general": _change(before.general, after.general),
        "domain": _change(before.domain, after.domain) if rows.domain else None,
        "gain": _gain(before, after),
        "own_answers": _change(own_losses[0.0], own_losses[1.0]) if own else None,
        "languages": _by_language(general.measuring, rows.general, before.general, after.general),
        "sweep": sweep_of(points) if len(points) > 2 else None,
        "learnt": learnt,
    }


def _foreign(subject: Subject, domain: Domain, ours: Sequence[Encoded], plan: LossPlan) -> ForeignRows:
    """The answers of the rows that are measured after other held-out questions, in the same language if there are."""
    named = languages_of(domain.held_out)
    language = {row: name for name, numbers in named.items() for row in numbers}
    groups = [language.get(row.row, UNCLEAR) for row in ours]
    return foreign_rows(ours, plan.others, subject.cutoff_len, answers=plan.domain, groups=groups)


def _gain(before: AtScale, after: AtScale) -> GainParts | None:
    was, now = before.answers, after.answers
    return None if was is None or now is None else gain_parts(was, now, before.rows.foreign)


def _pace(model: Scored, rows: Sequence[Encoded]) -> float:
    """Seconds that a token takes, by a few rows."""
    with model.at(1.0) as scoring:
        return seconds_per_token(scoring, rows)


def _plan(
    pace: float, ours: Sequence[Encoded], theirs: Sequence[Encoded], own: Sequence[Encoded], left: float | None
) -> LossPlan:
    """How many rows are measured at which scales in `left` seconds, at `pace` seconds a token."""
    seconds = None if left is None else left - pace * 2 * sum(map(len, own))
    return plan_losses([len(row) for row in ours], [len(row) for row in theirs], pace, seconds)


def _own_answers(subject: Subject, asked: Sequence[Asked]) -> list[Encoded]:
    """The base's answers to general questions as rows; where one was cut, its end is not trained and not measured."""
    rows: list[Encoded] = []
    for answer in asked:
        if answer.question.topic != GENERAL or not answer.base:
            continue
        example = answer.question.example.answered(answer.base)
        for row in _encode(subject, [example])[-1:]:
            start, end = row.trained[-1]
            kept = end - 1 if answer.base_cut else end
            if kept > start:
                rows.append(replace(row, trained=[(start, kept)]))
    return rows


def _encode(subject: Subject, examples: Sequence[Example]) -> list[Encoded]:
    return encode_examples(subject.tokenizer, subject.template, examples, cutoff_len=subject.cutoff_len).examples


def _change(before: RowLosses, after: RowLosses) -> Change:
    difference = paired_difference(before.sums.tolist(), after.sums.tolist(), before.counts.tolist())
    return Change(len(before.sums), int(before.counts.sum()), before.mean, after.mean, difference)


def _by_language(
    examples: Sequence[Example], rows: Sequence[Encoded], before: RowLosses, after: RowLosses
) -> dict[str, Change]:
    """The change for each language that has enough rows, and for all others together."""
    measured = {row.row for row in rows}
    named = languages_of([example for example in examples if example.row in measured])
    large = {name: set(numbers) for name, numbers in named.items() if len(numbers) >= FEWEST_OF_A_LANGUAGE}
    large.pop(UNCLEAR, None)
    rest = measured - set().union(*large.values())
    groups = {**large, "other languages": rest} if large and rest else large
    changes = {}
    for name, numbers in groups.items():
        picked = [place for place, row in enumerate(rows) if row.row in numbers]
        changes[name] = _change(before.pick(picked), after.pick(picked))
    return changes


# --- answers ------------------------------------------------------------------------------------------------------
def _answers(
    subject: Subject,
    domain: Domain,
    general: General,
    probes: Sequence[Probe],
    budget: Budget,
    say: Say,
    notes: dict[str, list[str]],
) -> list[Asked]:
    """Every answer; none where the engine can't use the adapter, and then a note says why."""
    limits = EngineLimits(
        concurrency=SLOTS[subject.device.type],
        context=max(LEAST_CONTEXT, subject.cutoff_len + max(TOKENS.values())),
        columns=subject.tuned.columns,
    )
    always, rest = make_questions(domain.held_out, general.measuring, probes)
    try:
        with subject.tuned.asking(subject.held, limits) as ask:
            return ask_all(ask, always, rest, budget.left(ANSWER_SHARE), say)
    except BadAdapter as error:
        notes["answers"] = [f"No answers: the engine can't use this adapter here ({error.message})."]
        return []


def _sample(answer: Asked, share: float = 0.0) -> Sample:
    asked = answer.question
    kind = asked.probe.kind if asked.probe else ""
    return Sample(asked.prompt, asked.reference, answer.base, answer.adapter, share, kind=kind)


def probing(asked: Sequence[Asked]) -> Probing | None:
    """The probes' scores by kind, and those that the adapter fails while the base passed: what is plainly false first,
    and of those the shortest answer."""
    probes = [(answer.question.probe, answer) for answer in asked if answer.question.probe is not None]
    if not probes:
        return None
    before = [passes(probe, answer.base) for probe, answer in probes]
    after = [passes(probe, answer.adapter) for probe, answer in probes]
    fallen = [was and not now for was, now in zip(before, after, strict=True)]
    kinds = []
    for kind in KINDS:
        of_kind = [place for place, (probe, _) in enumerate(probes) if probe.kind == kind]
        if of_kind:
            passed = (sum(scores[place] for place in of_kind) for scores in (before, after, fallen))
            kinds.append(KindScore(kind, len(of_kind), *passed))
    lost = [answer for (_, answer), gone in zip(probes, fallen, strict=True) if gone]
    lost.sort(key=lambda answer: (WORST_FIRST.index(answer.question.probe.kind), len(answer.adapter)))  # type: ignore[union-attr]
    won = sum(now and not was for was, now in zip(before, after, strict=True))
    examples = [_sample(answer) for answer in lost[:SHOWN_LOST]]
    return Probing(kinds, paired_difference(before, after, [1.0] * len(probes)), len(lost), won, examples)


def _drift(domain: Domain, general: General, asked: Sequence[Asked], notes: dict[str, list[str]]) -> Drift | None:
    """How many answers to general questions and probes talk like the training data."""
    answers = [answer for answer in asked if answer.question.topic != DOMAIN]
    if not answers:
        notes["drift"] = ["Left out: there are no answers to look at."]
        return None
    texts = _outputs(domain.train or domain.held_out)[:MOST_TEXTS]
    if not texts:
        notes["drift"] = ["Left out: the words of the training data are not known without the data."]
        return None
    references = _outputs(general.measuring)
    vocabulary = learn_vocabulary(texts, _outputs(general.other), references)
    if not vocabulary.words:
        notes["drift"] = ["Left out: no word is much more frequent in the training data than in general answers."]
        return None
    fallen = sorted(
        (_sample(answer, vocabulary.share(answer.adapter)) for answer in answers if vocabulary.falls(answer.adapter)),
        key=lambda sample: -sample.share,
    )
    own = _outputs(domain.held_out) if domain.train else []
    return Drift(
        asked=len(answers),
        before=sum(vocabulary.falls(answer.base) for answer in answers),
        after=len(fallen),
        threshold=vocabulary.threshold,
        words=list(vocabulary.words[:SHOWN_WORDS]),
        own_words=len(vocabulary.words),
        recognised=sum(map(vocabulary.falls, own)) / len(own) if own else None,
        mistaken=sum(map(vocabulary.falls, references)) / len(references),
        worst=fallen[:SHOWN_WORST],
    )


def _outputs(examples: Sequence[Example]) -> list[str]:
    return ["\n".join(turn.output or "" for turn in example.turns) for example in examples]
