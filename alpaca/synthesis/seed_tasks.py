"""Seed tasks: what a model is shown so that it knows what a task is. The file's format is that of self-instruct."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alpaca.data.reader import open_rows
from alpaca.errors import BadRows
from alpaca.files import hash_file
from alpaca.paths import as_written
from alpaca.synthesis.task import Instance, Task
from alpaca.words import type_name

MOST_FAULTS = 20
WANTED = '{"instruction": …, "instances": [{"input": …, "output": …}], "is_classification": false}'


@dataclass(frozen=True, slots=True)
class SeedTasks:
    """The tasks of one file or several. `hashes`: SHA-256 by the name of the file."""

    tasks: list[Task]
    hashes: dict[str, str]


def read_seed_tasks(sources: Sequence[str]) -> SeedTasks:
    """Read .jsonl files of seed tasks, or of rows with instruction, input and output. Raises BadRows, which names each
    fault, and the errors of alpaca.data for a file that can't be read."""
    tasks: list[Task] = []
    faults: list[str] = []
    hashes = {}
    for source in sources:
        for number, row in open_rows(source):
            found = _task(row)
            if isinstance(found, Task):
                tasks.append(found)
            else:
                faults.append(f"  {source}, row {number}: {found}")
        hashes[source] = hash_file(as_written(source), "sha256")["sha256"]
    if faults:
        more = [f"  and {len(faults) - MOST_FAULTS} more"] if len(faults) > MOST_FAULTS else []
        raise BadRows("\n".join([f"seed tasks can't be used; each is {WANTED}", *faults[:MOST_FAULTS], *more]))
    return SeedTasks(tasks, hashes)


def _task(row: Any) -> Task | str:
    """The task, or what is wrong with it."""
    if not isinstance(row, dict):
        return f"is {type_name(row)}, not an object"
    instruction, listed = row.get("instruction"), row.get("instances")
    if listed is None and "output" in row:
        listed = [{"input": row.get("input", ""), "output": row["output"]}]
    if not isinstance(instruction, str) or not instruction.strip():
        return "instruction is missing or blank"
    if not isinstance(listed, list) or not listed:
        return "instances is no list with something in it"
    instances = []
    for place, one in enumerate(listed, 1):
        texts = [one.get(name) for name in ("input", "output")] if isinstance(one, dict) else [None]
        if not all(isinstance(text, str) for text in texts) or not str(texts[-1]).strip():
            return f"instance {place} lacks a text as input or output"
        instances.append(Instance(str(texts[0]).strip(), str(texts[1]).strip()))
    is_classification = row.get("is_classification", False)
    if not isinstance(is_classification, bool):
        return f"is_classification is {type_name(is_classification)}, not true or false"
    return Task(instruction.strip(), tuple(instances), is_classification, str(row.get("name", "")))
