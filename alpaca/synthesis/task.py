"""A task: an instruction with one or several instances of it; how it is written in a prompt and read from an answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

NO_INPUT = "none"
FIELD = re.compile(
    r"^[ \t]*(?:[#*>\-]+[ \t]*)?(?:\d+[.)][ \t]*)?\**(?P<name>Task|Instruction|Input|Label|Output)s?\**[ \t]*"
    r"(?P<number>\d*)\.?\**[ \t]*[:：]?\**(?P<text>.*)$",
    re.MULTILINE | re.IGNORECASE,
)
RULE = re.compile(r"^[ \t]*(?:#{1,6}|-{3,}|\*{3,}|={3,})[ \t]*$", re.MULTILINE)
SAYS_NONE = re.compile(r"^\W*(?:no ?input|none|n/?a|empty|no input (?:needed|required|necessary))\W*$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Instance:
    """What a task is done on ("" where the instruction says all), and its answer."""

    input: str
    output: str


@dataclass(frozen=True, slots=True)
class Task:
    """`is_classification`: the answer is one of a few labels. Then the label is written first and the input to fit it:
    written in the other order, inputs of the commonest label are all that comes (arXiv 2212.10560, section 2.2)."""

    instruction: str
    instances: tuple[Instance, ...]
    is_classification: bool = False
    name: str = ""

    def written(self, number: int) -> str:
        """The task as it stands in a prompt."""
        lines = [f"Task {number}", f"Instruction: {self.instruction}"]
        for instance in self.instances:
            given = f"Input: {instance.input or NO_INPUT}"
            if self.is_classification:
                lines += [f"Label: {instance.output}", given]
            else:
                lines += [given, f"Output: {instance.output}"]
        return "\n".join(lines)


def read_tasks(text: str) -> list[Task | None]:
    """The tasks in an answer; None for one that lacks an instruction or an answer, so that it can be counted."""
    found: list[Task | None] = []
    for fields in _blocks(RULE.sub("", text)):
        instruction = next((content for name, content in fields if name == "instruction"), "")
        instances, labelled = _instances(fields)
        found.append(Task(instruction, tuple(instances), labelled) if instruction and instances else None)
    return found


def _blocks(text: str) -> list[list[tuple[str, str]]]:
    """(field, text) pairs, task by task: each begins with its heading, or with its instruction where it has none."""
    places = [match for match in FIELD.finditer(text) if _is_field(match)]
    blocks: list[list[tuple[str, str]]] = []
    ends = [*(place.start() for place in places[1:]), len(text)]
    for place, end in zip(places, ends, strict=False):
        name = place["name"].lower()
        content = f"{place['text']}{text[place.end() : end]}".strip()
        begins = name == "task" or (name == "instruction" and any(n == name for n, _ in (blocks or [[]])[-1]))
        if begins or not blocks:
            blocks.append([])
        blocks[-1].append((name, content))
    return [block for block in blocks if block != [("task", "")]]


def _is_field(match: re.Match[str]) -> bool:
    """Whether a line is a field's, and not a sentence that begins with such a word."""
    line = match[0].strip()
    if match["name"].lower() == "task":
        return bool(match["number"]) and len(line) < 40
    return ":" in line[:30] or "：" in line[:30]


def _instances(fields: Sequence[tuple[str, str]]) -> tuple[list[Instance], bool]:
    """Pairs of input and answer in the order in which they stand, and whether the answers are labels."""
    pairs: list[dict[str, str]] = [{}]
    for name, content in fields:
        if name not in ("input", "label", "output"):
            continue
        if name in pairs[-1]:
            pairs.append({})
        pairs[-1][name] = content
    labelled = any("label" in pair for pair in pairs)
    answer = "label" if labelled else "output"
    found = []
    for pair in pairs:
        given = pair.get("input", "")
        said = pair.get(answer) or pair.get("output", "")
        if said:
            found.append(Instance("" if SAYS_NONE.match(given) else given, said))
    return found, labelled
