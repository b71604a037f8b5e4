"""How far the answers of an export agree with those given here, and what is wrong where they don't."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from alpaca.export.here import FAULTS
from alpaca.export.proof import Answered, Proof, plain
from alpaca.words import shown

END = -1
"""Stands for whichever token ended an answer: tools differ in whether they list it."""


@dataclass(frozen=True)
class Said:
    """A token as a server lists it: its text, its id where it is told, its log-probability."""

    piece: str
    token: int | None
    logprob: float


@dataclass(frozen=True)
class Reply:
    """What a tool answered. `tokens`: all its ids, where it tells all of them. `said`: tokens with log-probabilities,
    of which some may be missing: llama.cpp lists none that ends within a character."""

    text: str
    ended: bool
    tokens: list[int] | None = None
    said: tuple[Said, ...] = ()


class Tool(Protocol):
    """Something that an export is asked in."""

    name: str

    def chat(self, asked: Sequence[Answered]) -> list[Reply]:
        """Answers to the messages: the tool fills in the template itself."""

    def complete(self, asked: Sequence[Answered]) -> list[Reply]:
        """Answers to the prompts' ids: what is left when the template is set aside."""


@dataclass(frozen=True)
class Tolerance:
    """What still counts as the same, by how the weights are stored.

    `share`: of tokens that must be equal, each answer compared up to its first difference. `logprob`: mean difference
    of the equal tokens' log-probabilities, in nats. `tie`: a second choice that was nearer than this here may be taken
    there. `loss`: how much the loss on rows' own answers may rise, in nats per token.
    """

    share: float
    logprob: float
    tie: float
    loss: float


TOLERANCES = {
    "fp32": Tolerance(share=1.0, logprob=0.002, tie=0.01, loss=0.002),
    "bf16": Tolerance(share=0.98, logprob=0.05, tie=0.15, loss=0.02),
    "fp16": Tolerance(share=0.98, logprob=0.05, tie=0.15, loss=0.02),
    "Q8_0": Tolerance(share=0.97, logprob=0.10, tie=0.30, loss=0.03),
    "Q5": Tolerance(share=0.90, logprob=0.25, tie=0.60, loss=0.12),
    "Q4": Tolerance(share=0.80, logprob=0.50, tie=1.00, loss=0.40),
}


SERVED = Tolerance(share=0.99, logprob=0.02, tie=0.05, loss=0.002)
"""Of weights in fp32 in a server, whose keys and values have 16 bits."""


def tolerance_of(precision: str, *, served: bool = False) -> Tolerance:
    """The tolerance for how weights are stored: fp32, bf16, fp16, or a type of GGUF's."""
    name = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}.get(precision, precision)
    if served and name == "fp32":
        return SERVED
    return TOLERANCES[name if name in TOLERANCES else name[:2]]


@dataclass(frozen=True)
class Agreement:
    """One check: who was asked, what was counted, and the verdict."""

    tool: str
    questions: int
    compared: int
    """Tokens, each answer up to its first difference."""
    equal: int
    ties: int
    """Answers that part from here where two tokens were nearly as likely, or end there at a control token that ends
    nothing here; not counted against it."""
    forks: int
    """Answers that part otherwise."""
    logprob_mean: float | None
    logprob_largest: float | None
    loss_here: float | None
    loss_there: float | None
    good: bool
    verdict: str
    first_difference: dict[str, str] | None

    @property
    def share(self) -> float:
        return self.equal / self.compared if self.compared else 0.0

    def line(self) -> str:
        """For people, on one line."""
        parts = [f"{self.equal:,} of {self.compared:,} tokens equal ({100 * self.share:.2f} %)"]
        if self.ties:
            parts.append(f"{self.ties} near ties taken otherwise")
        if self.logprob_mean is not None:
            parts.append(f"log-probabilities differ by {self.logprob_mean:.4f}, at most {self.logprob_largest:.4f}")
        if self.loss_there is not None and self.loss_here is not None:
            parts.append(f"loss {self.loss_here:.4f} here, {self.loss_there:.4f} there")
        return f"{self.tool}: {'; '.join(parts)}. {self.verdict}"

    def record(self) -> dict[str, Any]:
        return asdict(self) | {"share": round(self.share, 5)}


@dataclass(frozen=True)
class _Compared:
    equal: int
    compared: int
    fork: int | None
    tie: bool
    differences: list[float]


def check(proof: Proof, tool: Tool, loss_there: float | None = None) -> Agreement:
    """Ask the proof's questions of `tool`, by their messages, and judge. `loss_there`: of the proof's references."""
    limit = tolerance_of(proof.precision, served=loss_there is None)
    replies = tool.chat(proof.answers)
    found = [_compare(proof, ours, reply, limit) for ours, reply in zip(proof.answers, replies, strict=True)]
    fault = _fault(proof, found, limit, loss_there)
    if fault:
        fault = _diagnosis(proof, replies, found, limit, tool) or fault
    differences = [value for one in found for value in one.differences]
    first = next((n for n, one in enumerate(found) if one.fork is not None and not one.tie), None)
    return Agreement(
        tool=tool.name,
        questions=len(found),
        compared=sum(one.compared for one in found),
        equal=sum(one.equal for one in found),
        ties=sum(one.tie for one in found),
        forks=sum(one.fork is not None and not one.tie for one in found),
        logprob_mean=sum(differences) / len(differences) if differences else None,
        logprob_largest=max(differences, default=None),
        loss_here=proof.loss if loss_there is not None else None,
        loss_there=loss_there,
        good=not fault,
        verdict=f"It does NOT answer as here. Look at the {fault}" if fault else "It answers as here.",
        first_difference=None if first is None else _shown(proof.answers[first], replies[first]),
    )


def _shown(ours: Answered, reply: Reply) -> dict[str, str]:
    return {"question": ours.messages[-1]["content"], "here": ours.text, "there": reply.text}


def _ids(tokens: Sequence[int], ends: Sequence[int], ended: bool) -> list[int]:
    """An answer's ids with END in place of whatever ended it."""
    kept = [token for token in tokens if token not in ends]
    return [*kept, END] if ended else kept


def _compare(proof: Proof, ours: Answered, reply: Reply, limit: Tolerance) -> _Compared:
    here = _ids(ours.tokens, proof.ends, ours.ended)
    if reply.tokens is not None:
        there = _ids(reply.tokens, proof.ends, reply.ended)
        equal = next(
            (n for n, (a, b) in enumerate(zip(here, there, strict=False)) if a != b), min(len(here), len(there))
        )
    else:
        equal = _equal_by_text(ours, reply, here)
    fork = equal if equal < len(here) else None
    tie = fork is not None and (ours.margins[fork] < limit.tie or (reply.ended and ours.tokens[fork] in proof.control))
    return _Compared(equal, equal if fork is None or tie else equal + 1, fork, tie, _differences(ours, reply, equal))


def _equal_by_text(ours: Answered, reply: Reply, here: list[int]) -> int:
    """How many of our tokens, the end among them, the text of a reply begins with."""
    mine, theirs = plain(ours.text), plain(reply.text)
    pairs = zip(mine, theirs, strict=False)
    common = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(mine), len(theirs)))
    whole = mine == theirs
    texts = sum(token != END for token in here)
    equal = texts if whole else sum(reach <= common for reach in ours.reach[:texts])
    return equal + 1 if whole and ours.ended and reply.ended else equal


def _differences(ours: Answered, reply: Reply, equal: int) -> list[float]:
    """Of log-probabilities, over the equal tokens that the reply lists."""
    found = []
    place = 0
    for said in reply.said:
        while place < equal and not _is_same(ours, place, said):
            place += 1
        if place >= equal:
            break
        found.append(abs(ours.logprobs[place] - said.logprob))
        place += 1
    return found


def _is_same(ours: Answered, place: int, said: Said) -> bool:
    return said.token == ours.tokens[place] if said.token is not None else said.piece == ours.pieces[place]


def _fault(proof: Proof, found: Sequence[_Compared], limit: Tolerance, loss_there: float | None) -> str:
    """What is beyond the tolerance, in words; "" where nothing is."""
    compared, equal = (sum(getattr(one, name) for one in found) for name in ("compared", "equal"))
    share = equal / compared if compared else 0.0
    differences = [value for one in found for value in one.differences]
    mean = sum(differences) / len(differences) if differences else 0.0
    if loss_there is not None and proof.loss is not None and loss_there - proof.loss > limit.loss:
        return f"precision: the loss rises by {loss_there - proof.loss:.3f}, at most {limit.loss:g} was expected"
    if share < limit.share:
        return (
            f"weights: {100 * share:.1f} % of the tokens are equal, at least {100 * limit.share:g} % were expected; a "
            "base of the same shape with other weights answers so, and so does too coarse a precision"
        )
    if mean > limit.logprob:
        return (
            f"weights: log-probabilities differ by {mean:.3f} nats on average, at most {limit.logprob:g} were expected"
        )
    return ""


def _misses_ends(proof: Proof, found: Sequence[_Compared]) -> bool:
    """Whether answers part from here mostly where they ended here, and go on there."""
    forks = [(ours, one.fork) for ours, one in zip(proof.answers, found, strict=True) if one.fork is not None]
    at_the_end = sum(ours.ended and fork == len(ours.tokens) - 1 for ours, fork in forks)
    return 2 * at_the_end > len(forks)


def _diagnosis(
    proof: Proof, replies: Sequence[Reply], found: Sequence[_Compared], limit: Tolerance, tool: Tool
) -> str | None:
    """Which known fault the replies look like; None where they look like none."""
    if _misses_ends(proof, found):
        return "turn end: answers that ended here go on there"
    if (variant := _nearest_fault(proof, replies)) is not None:
        return FAULTS[variant]
    if any(one.fork is not None and not one.tie for one in found):
        again = [
            _compare(proof, ours, reply, limit)
            for ours, reply in zip(proof.answers, tool.complete(proof.answers), strict=True)
        ]
        if not _fault(proof, again, limit, None):
            return "template: the very tokens of the prompts are answered as here, the messages are not"
    return None


def _nearest_fault(proof: Proof, replies: Sequence[Reply]) -> str | None:
    """The known fault whose first tokens the replies are at least four times nearer to than to ours."""
    tried = [(answer, reply) for answer, reply in zip(proof.answers, replies, strict=True) if answer.variants]
    theirs = [reply for _, reply in tried]
    ours = _distance(theirs, [(answer.tokens[0], answer.logprobs[0]) for answer, _ in tried])
    names = tried[0][0].variants if tried else {}
    distances = {name: _distance(theirs, [answer.variants[name] for answer, _ in tried]) for name in names}
    nearest = min(distances, key=lambda name: distances[name], default=None)
    return nearest if nearest is not None and 4 * distances[nearest] < ours else None


def _distance(replies: Sequence[Reply], firsts: Sequence[tuple[int, float]]) -> float:
    """Mean difference of the first tokens' log-probabilities; another token counts as 1."""
    total = 0.0
    for reply, (token, logprob) in zip(replies, firsts, strict=True):
        said = reply.said[0] if reply.said else None
        there = said.token if said else None
        total += abs(said.logprob - logprob) if said and there == token else 1.0
    return total / max(1, len(replies))


def first_difference_lines(agreement: Agreement) -> list[str]:
    """The first question that is answered otherwise, with both answers."""
    found = agreement.first_difference
    if found is None:
        return []
    return [f"  {name}: {shown(found[name], 200)}" for name in ("question", "here", "there")]
