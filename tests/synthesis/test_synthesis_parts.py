"""The parts of synthesis: reading tasks, likeness, what a translation keeps, languages, files that only grow."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpaca.data.reader import read_examples
from alpaca.errors import BadSetting
from alpaca.synthesis.about_language import ABOUT
from alpaca.synthesis.filters import BEYOND_TEXT, goes_in_circles
from alpaca.synthesis.kept_parts import is_code, lost_parts, masked, numbers_of
from alpaca.synthesis.language import parse_language
from alpaca.synthesis.lines import Lines, whole_lines
from alpaca.synthesis.seed_tasks import read_seed_tasks
from alpaca.synthesis.similarity import Pool, words
from alpaca.synthesis.task import Instance, Task, read_tasks
from tests.conftest import ROOT

SEEDS = [str(ROOT / "data" / name) for name in ("seed_tasks.jsonl", "seed_tasks_alpacas.jsonl")]


# --- tasks --------------------------------------------------------------------------------------------------------
def test_the_shipped_seed_tasks_are_read_back_as_they_are_written() -> None:
    tasks = read_seed_tasks(SEEDS).tasks
    assert len(tasks) == 40 and sum(task.name.startswith("alpaca_") for task in tasks) == 12
    assert sum(task.is_classification for task in tasks) >= 7
    text = "\n\n".join(task.written(number) for number, task in enumerate(tasks, 1))
    bare = [Task(task.instruction, task.instances, task.is_classification) for task in tasks]
    assert read_tasks(text) == bare


@pytest.mark.parametrize(
    "text",
    [
        "Task 4\nInstruction: Add.\nInput: 2, 3\nOutput: 5",
        "**Task 4**\n**Instruction:** Add.\n**Input:** 2, 3\n**Output:** 5\n\n---",
        "### Task 4:\nInstruction：Add.\nInput：2, 3\nOutput：5",
        "Here they are.\n\n4. Instruction: Add.\n   Input: 2, 3\n   Output: 5\n",
        "- Instructions: Add.\n- Input:\n2, 3\n- Output:\n5\n###",
    ],
)
def test_tasks_are_read_in_the_forms_that_models_write(text: str) -> None:
    assert read_tasks(text) == [Task("Add.", (Instance("2, 3", "5"),))]


def test_a_field_s_name_inside_a_text_is_text() -> None:
    (task,) = read_tasks("Task 1\nInstruction: Explain.\nInput: none\nOutput: Task sharing helps.\nOutput grows by it.")
    assert task == Task("Explain.", (Instance("", "Task sharing helps.\nOutput grows by it."),))
    assert read_tasks("I can't do that.") == [] == read_tasks("Task 1\nTask 2")


# --- likeness -----------------------------------------------------------------------------------------------------
def rouge_l(one: list[str], other: list[str]) -> float:
    """By the definition: twice the longest common subsequence by the words of both."""
    row = [0] * (len(other) + 1)
    for word in one:
        last = 0
        for place, there in enumerate(other, 1):
            last, row[place] = row[place], last + 1 if word == there else max(row[place], row[place - 1])
    return 2 * row[-1] / (len(one) + len(other))


TEXTS = st.lists(
    st.sampled_from(["hay", "grass", "the", "a", "eats", "羊驼", "草", "wool"]), min_size=1, max_size=12
).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(pool=st.lists(TEXTS, min_size=1, max_size=5), text=TEXTS)
def test_likeness_is_rouge_l(pool: list[str], text: str) -> None:
    best = max(rouge_l(words(text), words(other)) for other in pool)
    found = Pool(pool).nearest(text, 0.3)
    assert (found is not None) == (best > 0.3)
    if found is not None:
        assert found[1] == pytest.approx(best) and found[0] in pool


# --- what a translation keeps -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "translation", "lost"),
    [
        ("Pay 1,500 to {name} by 03/05.", "{name}之前5月3日付1500。", []),
        ("Pay 1,500 to {name}.", "付1500。", ["{name}"]),
        ("It costs 3.5 kg, not 7.", "Es kostet 3,5 kg.", ["7"]),
        ("Read https://a.example/x?y=2.", "请看https://a.example/x?y=2。", []),
        ("Write to me@farm.example or <b>call</b>.", "写信给me@farm.example或者<b>打电话</b>。", []),
        ("Use `ls -l` and %s.", "使用 `ls` 和 %s。", ["`ls -l`"]),
        ("There are ٣ goats.", "有3只羊。", []),
        ("Dear [Your Name], hello", "亲爱的[您的名字]，你好", ["[Your Name]"]),
    ],
)
def test_a_part_that_is_lost_is_named(text: str, translation: str, lost: list[str]) -> None:
    assert lost_parts(text, translation) == lost


def test_blocks_of_code_come_back_as_they_were() -> None:
    text = "See:\n```py\nx = 1\n```\nand\n~~~\ny\n~~~\nDone."
    hidden = masked(text)
    assert hidden.text == "See:\n⟦1⟧\nand\n⟦2⟧\nDone." and hidden.restored(hidden.text) == text
    assert hidden.restored("先⟦2⟧后⟦1⟧") == "先~~~\ny\n~~~后```py\nx = 1\n```"
    assert hidden.restored("只有⟦1⟧") is None and hidden.restored("⟦1⟧⟦2⟧⟦2⟧") is None
    assert not masked("```\nx\n```").has_words and not masked("12 + 3 = `15`").has_words


def test_numbers_are_the_same_in_every_way_to_write_them() -> None:
    assert list(numbers_of("1,000 or 1.000 or 1 000 or 007 or 2.50 or ٤٢")) == ["1000", "7", "2.50", "42"]


def test_a_program_without_a_fence_is_known() -> None:
    assert is_code("def f(x):\n    return x + 1") and is_code("SELECT name FROM herd;")
    assert not is_code("An alpaca eats hay.\nIt sleeps a lot.") and not is_code("")


@pytest.mark.parametrize(
    "text",
    ["Translate into French: hello", "Find a rhyme for moon", "Fix the grammar", "What is the plural of goose?",
     "Write it in Spanish", "把句子翻译成英文", "Nenne ein Synonym für froh", "List words that start with b",
     "Corrige l'orthographe"],
)  # fmt: skip
def test_a_task_about_a_language_is_known(text: str) -> None:
    assert ABOUT.search(text)


@pytest.mark.parametrize(
    "text", ["Name three French dishes.", "Describe the history of Spanish art.", "Write a letter to a friend."]
)
def test_a_task_about_something_else_is_none_about_a_language(text: str) -> None:
    assert not ABOUT.search(text)


@pytest.mark.parametrize(
    ("text", "beyond"),
    [("Draw a horse.", True), ("Find the facts and visualize them", True), ("Describe the picture", True),
     ("画一张羊驼的图", True), ("Zeichne ein Haus", True), ("Draw a conclusion from the text", False),
     ("Write a short play about a draw", False), ("Recommend a film to watch", False), ("Plan a record sale", False)],
)  # fmt: skip
def test_what_a_text_model_can_t_do_is_known(text: str, beyond: bool) -> None:
    assert bool(BEYOND_TEXT.search(text)) is beyond


def test_a_text_that_goes_in_circles_is_known() -> None:
    assert goes_in_circles("I like the hay. " * 12) and not goes_in_circles("-" * 80)
    assert not goes_in_circles((ROOT / "LICENSE").read_text()[:6000])


# --- languages ----------------------------------------------------------------------------------------------------
def test_languages_go_by_codes_and_names() -> None:
    assert parse_language("zh").sign == parse_language("Traditional Chinese").sign == "Chinese"
    assert parse_language("nb").sign == "Danish or Norwegian" and parse_language("german").name == "German"
    unknown = parse_language("Quechua")
    assert unknown.sign == "" and not unknown.differs("This is the text of a letter to the king.")
    with pytest.raises(BadSetting, match="'xx' is no language"):
        parse_language("xx")


def test_every_language_of_the_seed_tasks_is_known_by_its_sign() -> None:
    found = {
        parse_language(code).name: sum(
            parse_language(code).is_in(f"{task.instruction}\n{task.instances[0].output}")
            for task in read_seed_tasks(SEEDS).tasks
        )
        for code in ("en", "de", "fr", "es", "zh", "ja")
    }
    assert min(found.values()) >= 1 and found["English"] >= 20, found


# --- files that only grow -----------------------------------------------------------------------------------------
def test_half_a_line_is_cut_off_before_anything_is_added(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": "' + b"x" * 200_000)
    lines = Lines(path)
    assert lines.mended == 200_007
    lines.add({"c": "\ud83d"})
    lines.close()
    assert whole_lines(path) == [b'{"a": 1}\n', b'{"c": "?"}\n'] and whole_lines(tmp_path / "none") == []


FULL = """
import sys
from pathlib import Path
from alpaca.synthesis.lines import Lines
lines = Lines(Path(sys.argv[1]))
for number in range(100):
    lines.add({"number": number, "text": "x" * 100})
"""


def test_a_disk_that_fills_up_leaves_whole_lines_and_one_line_of_error(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], cwd=ROOT, preexec_fn=limit, capture_output=True, text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert "E7006 RowsUnwritten" in done.stderr and "goes on from there" in done.stderr
    assert path.read_bytes().endswith(b"\n") and len(whole_lines(path)) == 7


def test_the_rows_that_come_out_are_rows_that_go_in(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    lines = Lines(rows)
    for task in read_seed_tasks(SEEDS).tasks:
        for one in task.instances:
            lines.add({"instruction": task.instruction, "input": one.input, "output": one.output})
    lines.close()
    assert len(read_examples(str(rows)).examples) >= 45
