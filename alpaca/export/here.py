"""The model as it answers here: the base with its adapters on it, unmerged; what exports are held against."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from alpaca.adapter.folder import load_adapter
from alpaca.base.load import load_model
from alpaca.base.precision import weight_bytes
from alpaca.device import free_memory, pick_device
from alpaca.errors import ExportFailed, ExportRefused
from alpaca.export.greedy import greedy_answers, mean_loss
from alpaca.export.leaving import Leaving
from alpaca.export.proof import Answered, Proof, plain
from alpaca.export.questions import Question, forty_questions
from alpaca.progress import Say, progress
from alpaca.prompts.control import control_tokens
from alpaca.prompts.encode import encode_prompt, encode_segments
from alpaca.prompts.jinja import rendered
from alpaca.words import one_line, size_text

if TYPE_CHECKING:
    from pathlib import Path

TRIED = 12  # questions that models with known faults are asked
SHARE = 0.8  # of the free memory that the base may take
BASE, PLAIN, UNSCALED, NO_BREAK = "base", "plain", "unscaled", "no break"
FAULTS = {
    BASE: "the adapter is not applied: it answers as the base alone",
    PLAIN: "scale: it answers as if rsLoRA's alpha / sqrt(r) was read as alpha / r",
    UNSCALED: "scale: it answers as if the adapters' strength was 1",
    NO_BREAK: "template: it answers as if the prompt lacked the line break at its end",
}
"""Known faults → what is said where an export answers like a model that has it."""


def reference_precision(base: Path) -> tuple[str, str]:
    """fp32 where the free memory holds it, else bf16, with the reason. Raises ExportRefused where neither fits."""
    device = pick_device()
    free = free_memory(device)
    for precision in ("fp32", "bf16"):
        size = weight_bytes(base, precision)
        if size <= SHARE * free:
            return precision, f"{size_text(size)} of {size_text(free)} free"
    raise ExportRefused(
        f"an export is held against the model's own answers, and {base.name} takes {size_text(size)} in bf16 for that; "
        f"{size_text(free)} are free. Free some memory or take a larger machine"
    )


def prove(leaving: Leaving, what: str, files: dict[str, str], precision: str, say: Say) -> Proof:
    """Ask the forty questions here. The chat template that leaves is filled in as well, and must give the same ids."""
    questions, source = forty_questions(leaving.card)
    for question in questions:
        _same_prompt(leaving, question)
    held, why = reference_precision(leaving.base)
    say(f"proof: {len(questions)} questions ({source}), answered here in {held} ({why})")
    with _model(leaving, held) as model:
        answers = _answers(model, leaving, questions)
        references = _references(leaving, questions)
        loss = mean_loss(model, references)
    return Proof(
        what=what, name=leaving.name, files=files, precision=precision, base=leaving.base.name,
        fingerprint=leaving.fingerprint, adapters={used.name: used.scale for used in leaving.strengths},
        template=leaving.template.name, jinja=leaving.jinja, ends=list(leaving.ends), here=held, questions_from=source,
        control=sorted(control_tokens(leaving.tokenizer).values()), answers=answers, loss=loss, references=references,
    )  # fmt: skip


@contextmanager
def _model(leaving: Leaving, precision: str) -> Iterator[Any]:
    """The base with all adapters at their strengths."""
    model: Any = load_model(leaving.base, precision)
    for number, used in enumerate(leaving.strengths):
        model = load_adapter(model, used.files, name=f"a{number}")
    if leaving.strengths:
        model.base_model.set_adapter([f"a{number}" for number in range(len(leaving.strengths))])
        model.requires_grad_(False)
        _set_scale(model, leaving, lambda number, rank: leaving.strengths[number].scale)
    yield model


def _set_scale(model: Any, leaving: Leaving, factor: Callable[[int, int], float]) -> None:
    """Scale each adapter as it was trained, times `factor(its number, its rank in the layer)`."""
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        for name in module.scaling if isinstance(module, LoraLayer) else ():
            number, rank = int(name[1:]), module.r[name]
            alpha = module.lora_alpha[name]
            rslora = leaving.strengths[number].files.spec.use_rslora
            module.scaling[name] = alpha / (math.sqrt(rank) if rslora else rank) * factor(number, rank)


def _answers(model: Any, leaving: Leaving, questions: Sequence[Question]) -> list[Answered]:
    prompts = [encode_prompt(leaving.tokenizer, leaving.template, question.example) for question in questions]
    with progress("answering here", len(questions), "question") as done:
        found = greedy_answers(model, prompts, [question.most for question in questions], leaving.ends, done)
    variants = _variants(model, leaving, questions[:TRIED], prompts[:TRIED])

    def decode(tokens: list[int]) -> str:  # servers leave control tokens out of texts
        return str(leaving.tokenizer.decode(tokens, skip_special_tokens=True))

    return [
        Answered(
            kind=question.kind,
            messages=[dict(message) for message in question.messages],
            most=question.most,
            prompt=prompt,
            tokens=answer.tokens,
            logprobs=[round(value, 5) for value in answer.logprobs],
            margins=[round(value, 5) for value in answer.margins],
            pieces=[decode([token]) for token in answer.tokens],
            reach=[len(plain(decode(answer.tokens[: count + 1]))) for count in range(len(answer.tokens))],
            text=decode(answer.tokens),
            ended=answer.ended,
            variants={name: first[number] for name, first in variants.items() if number < TRIED},
        )
        for number, (question, prompt, answer) in enumerate(zip(questions, prompts, found, strict=True))
    ]


def _variants(
    model: Any, leaving: Leaving, questions: Sequence[Question], prompts: list[list[int]]
) -> dict[str, list[tuple[int, float]]]:
    """The first token of every answer, with its log-probability, of the same model with a known fault."""

    def first(ids: Sequence[Sequence[int]]) -> list[tuple[int, float]]:
        found = greedy_answers(model, ids, [1] * len(ids), leaving.ends)
        return [(answer.tokens[0], round(answer.logprobs[0], 5)) for answer in found]

    out = {NO_BREAK: first([_without_break(leaving, question) for question in questions])}
    used = leaving.strengths
    if used:
        with model.disable_adapter():
            out[BASE] = first(prompts)
        scales = [strength.scale for strength in used]
        faults: dict[str, Callable[[int, int], float]] = {}
        if any(strength.files.spec.use_rslora for strength in used):
            faults[PLAIN] = lambda number, rank: (
                scales[number] / (math.sqrt(rank) if used[number].files.spec.use_rslora else 1)
            )
        if any(scale != 1 for scale in scales):
            faults[UNSCALED] = lambda number, rank: 1.0
        for name, factor in faults.items():
            _set_scale(model, leaving, factor)
            out[name] = first(prompts)
        _set_scale(model, leaving, lambda number, rank: scales[number])
    return out


def _without_break(leaving: Leaving, question: Question) -> list[int]:
    """The prompt without the blanks at its end."""
    segments = leaving.template.segments(question.example)
    cut = segments[-1]._replace(text=segments[-1].text.rstrip())
    return encode_segments(leaving.tokenizer, [[*segments[:-1], cut]], end=leaving.template.turn_end)[0].input_ids


def _references(leaving: Leaving, questions: Sequence[Question]) -> list[tuple[list[int], list[int]]]:
    """Prompt and answer ids of the rows that have an answer of their own: those held out, else general ones."""
    kinds = {question.kind for question in questions}
    wanted = "held out" if "held out" in kinds else "general"
    out = []
    for question in questions:
        if question.kind != wanted or not question.reference:
            continue
        example = question.example.answered(question.reference)
        encoded = encode_segments(
            leaving.tokenizer, [leaving.template.segments(example)], end=leaving.template.turn_end
        )[0]
        start = encoded.trained[-1][0]
        out.append((encoded.input_ids[:start], encoded.input_ids[start:]))
    return out


def _same_prompt(leaving: Leaving, question: Question) -> None:
    ours = encode_prompt(leaving.tokenizer, leaving.template, question.example)
    theirs = rendered(leaving.tokenizer, leaving.jinja, [dict(message) for message in question.messages])
    if ours != theirs:
        at = next(
            (n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
        )
        near = leaving.tokenizer.decode(ours[max(0, at - 5) : at + 5])
        raise ExportFailed(
            f"the template {leaving.template.name} as a chat template gives other tokens than here for the question "
            f"{one_line(question.messages[-1]['content'])!r}, from token {at} on ({one_line(near)!r})"
        )
