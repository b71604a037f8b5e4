"""--replay_self: the base answers the replay prompts itself, and its own answers are replayed.

What the base would say anyway costs it least to keep saying. The answers are kept in the cache for the next run, and
beside the checkpoints, so that a resumed run has the same ones whatever became of the cache.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from alpaca.data.reader import read_examples
from alpaca.data.rows import to_row
from alpaca.errors import BadCheckpoint, DataError, NoRowsLeft
from alpaca.files import written_aside
from alpaca.progress import Say, progress
from alpaca.prompts.example import Example, text_problem
from alpaca.prompts.template import Template
from alpaca.training.answer_cache import OwnAnswer, add_answers, cache_file, read_answers
from alpaca.training.checkpoints import read_run
from alpaca.training.replay import Answered, rows_hash
from alpaca.words import tagged

if TYPE_CHECKING:
    from alpaca.serving.request import GenerationRequest
    from alpaca.training.plan import Plan

FILE = "replay.jsonl"

Answers = tuple[list[Example], Answered]


def answer_replay(plan: Plan, say: Say) -> Answers:
    """Ask the base for its own answers and write them into the output folder. Raises NoRowsLeft for none of use."""
    rows, asked, cut_off, empty = _ask(plan, say)
    rows = write_answers(rows, plan.config.output_dir)
    return rows, Answered(asked, cut_off, empty, rows_hash(rows))


def kept_answers(checkpoint: Path, say: Say) -> Answers:
    """The answers of the run that is resumed from `checkpoint`. Raises BadCheckpoint where they are gone or changed."""
    path = checkpoint.parent / FILE
    noted = read_run(checkpoint).get("replay_answers")
    if not isinstance(noted, dict) or not path.is_file():
        raise BadCheckpoint(f"{path} is missing: the base's own answers, with which {checkpoint.name} was trained")
    try:
        rows = read_examples(str(path)).examples
    except DataError:
        rows = []
    if rows_hash(rows) != noted.get("sha256"):
        raise BadCheckpoint(f"{path} was changed since {checkpoint.name} was trained with it. Put it back as it was")
    say(tagged("replay", f"{len(rows)} answers of the base from {path}"))
    return rows, Answered(**noted)


def _ask(plan: Plan, say: Say) -> tuple[list[Example], int, int, int]:
    """(rows that are of use, how many were asked, answers cut off, empty answers)."""
    prompts = prompts_to_ask(plan)
    most = plan.most_answer_tokens
    kept = cache_file(
        base=plan.fingerprint, precision=plan.precision.precision, template=plan.template.card(), max_tokens=most
    )
    known = read_answers(kept, say)
    if unknown := [prompt for prompt in prompts if prompt.key() not in known]:
        known |= _answer(plan, unknown, most, say)
        add_answers(kept, {prompt.key(): known[prompt.key()] for prompt in prompts}, say)
    if before := len(prompts) - len(unknown):
        say(tagged("replay", f"{before} of the base's {len(prompts)} own answers were made before, in {kept}"))
    answers = [(prompt, known[prompt.key()]) for prompt in prompts]
    whole = [(prompt, answer) for prompt, answer in answers if plan.taught or not answer.cut_off]
    rows = [
        prompt.answered(answer.text)
        for prompt, answer in whole
        if answer.text.strip() and not text_problem(answer.text)
    ]
    cut_off = len(answers) - len(whole)
    empty = len(whole) - len(rows)
    left_out = f"left out: {cut_off} cut off, {empty} empty or no text"
    if not rows:
        raise NoRowsLeft(
            f"none of the base's {len(prompts)} own answers can be used ({left_out}): give --replay_self false"
        )
    say(tagged("replay", f"{len(rows)} answers of the base are replayed; {left_out}"))
    return rows, len(prompts), cut_off, empty


def _answer(plan: Plan, prompts: Sequence[Example], most: int, say: Say) -> dict[str, OwnAnswer]:
    """What the base says to each prompt in at most `most` tokens, by its key."""
    from alpaca.serving.limits import EngineLimits
    from alpaca.serving.loading import load_base, open_engine
    from alpaca.serving.stream import FinishReason
    from alpaca.serving.together import answers

    longest = max(len(encoded) for encoded in plan.replay.encoded) if plan.replay else 0
    base = load_base(str(plan.base), plan.precision.precision, say=_unsaid)
    engine = open_engine(base, limits=EngineLimits(context=longest + most), say=_unsaid)
    try:
        what = f"the base answers {len(prompts)} prompts first, at most {most} tokens each"
        with progress(tagged("replay", what), len(prompts), "answer", say) as done:
            found = answers(engine, [_request(prompt, plan.template, most) for prompt in prompts], done=done)
    finally:
        engine.close()
        del engine, base
        gc.collect()
    return {
        prompt.key(): OwnAnswer(answer.text, answer.finish == FinishReason.LENGTH)
        for prompt, answer in zip(prompts, found, strict=True)
    }


def prompts_to_ask(plan: Plan) -> list[Example]:
    """The prompts that the run would draw, each once: the first turn of a row, its answer awaited."""
    if plan.replay is None:
        return []
    by_number = {row.row: row for row in plan.replay.rows}
    drawn = dict.fromkeys(index for epoch in plan.replay.draws for index in epoch)
    rows = [by_number[number] for number in dict.fromkeys(plan.replay.encoded[index].row for index in drawn)]
    return [replace(row, turns=row.turns[:1]).awaiting() for row in rows if not row.raw]


def _request(prompt: Example, template: Template, most: int) -> GenerationRequest:
    """Greedy, in the words that training uses."""
    from alpaca.serving.request import GenerationRequest

    return GenerationRequest(prompt, max_tokens=most, temperature=0.0, prompt_template=template)


def write_answers(rows: Sequence[Example], folder: str) -> list[Example]:
    """Write the rows as --data_path takes them, and read them back: every run sees what the file holds."""
    path = Path(folder) / FILE
    lines = [json.dumps(to_row(row), ensure_ascii=False) for row in rows]
    with written_aside(path) as aside:
        aside.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return read_examples(str(path)).examples


def _unsaid(line: str) -> None:
    """The engine's choices are not those of the training."""
