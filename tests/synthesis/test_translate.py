"""Translated rows: in their order, with what must not be translated kept, and faulty ones tried again, then listed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alpaca.synthesis.__main__ import main
from tests.synthesis.misbehaving import Asked, Misbehaving, last_text, misbehaving
from tests.synthesis.running import card_of, interpreter, kill_at, rows_of

PLAIN = [
    {"instruction": "Name three grasses that alpacas eat.", "input": "", "output": "Timothy, ryegrass and fescue."},
    {"instruction": "Say hello to {name} in 12 words.", "input": "See https://farm.example/a?b=1 for more.",
     "output": "Use the `greet` function:\n```python\ngreet('hello 77')\n```\nIt takes 1,500 ms."},
    {"instruction": "Name three grasses that alpacas eat.", "input": "", "output": "Timothy, ryegrass and fescue."},
]  # fmt: skip
FENCE = "```python\ngreet('hello 77')\n```"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def options(server: Misbehaving, data: Path, output: Path, *more: str) -> list[str]:
    return [
        "translate", "--url", server.url, "--to", "zh", "--data_path", str(data), "--output", str(output), *more,
    ]  # fmt: skip


def test_rows_are_translated_in_order_and_keep_what_they_must(tmp_path: Path) -> None:
    data, output = write(tmp_path / "rows.jsonl", PLAIN), tmp_path / "zh.jsonl"
    with misbehaving(interpreter) as server:
        main(options(server, data, output))
        asked = len(server.asked)
        main(options(server, data, output))
    assert len(server.asked) == asked == 5, "equal texts in equal rows are asked for once, and nothing twice"
    rows = rows_of(output)
    assert len(rows) == 3 and rows[0] == rows[2]
    assert "{name}" in rows[1]["instruction"] and "12" in rows[1]["instruction"]
    assert "https://farm.example/a?b=1" in rows[1]["input"]
    assert FENCE in rows[1]["output"] and "`greet`" in rows[1]["output"] and "1,500" in rows[1]["output"]
    assert not any("greet('hello 77')" in last_text(asked) for asked in server.asked), "blocks of code stay here"
    card = card_of(output)
    assert card["counts"] == {"translated": 3} and "Chinese" in card["settings"]["to"] and card["listed"] == {}


def test_a_row_s_texts_are_translated_in_one_conversation(tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", PLAIN[:1])
    with misbehaving(interpreter) as server:
        main(options(server, data, tmp_path / "zh.jsonl"))
    first, second = server.asked
    said = [message["content"] for message in second["messages"]]
    assert said[0] == first["messages"][0]["content"] and said[1].startswith("这是译文")
    assert said[2] == "<text>\nTimothy, ryegrass and fescue.\n</text>"


def test_more_rows_go_on_from_those_that_are_there(tmp_path: Path) -> None:
    data, output = write(tmp_path / "rows.jsonl", PLAIN[:1]), tmp_path / "zh.jsonl"
    with misbehaving(interpreter) as server:
        main(options(server, data, output))
        write(data, [PLAIN[1], PLAIN[0]])
        main(options(server, data, output))
    rows = rows_of(output)
    assert "{name}" in rows[0]["instruction"] and "{name}" not in rows[1]["instruction"]
    assert len(server.asked) == 5


def test_a_text_that_lost_something_is_tried_again_and_then_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def forgetful(asked: Asked) -> str:
        text = last_text(asked)
        if "A translation that was made before is wrong" in text and "lacks https://" in text:
            return interpreter(asked)
        return (
            "这是没有链接的译文" if "https" in text else "It is not translated at all, and that is the fault of this."
        )

    rows = [{"instruction": "Read https://a.example/b now, please.", "input": "", "output": "1"},
            {"instruction": "What is the name of the tallest mountain?", "input": "", "output": "2"}]  # fmt: skip
    data, output = write(tmp_path / "rows.jsonl", rows), tmp_path / "zh.jsonl"
    with misbehaving(forgetful) as server:
        main(options(server, data, output, "--tries", "2"))
    (row,) = rows_of(output)
    assert "https://a.example/b" in row["instruction"] and row["output"] == "1"
    (listed,) = rows_of(tmp_path / "zh.listed.jsonl")
    assert listed["row"] == 2 and listed["instruction"] == rows[1]["instruction"]
    assert listed["fault"] == "instruction: it is in English, not in Chinese (2 tries)"
    assert card_of(output)["listed"] == {"2": listed["fault"]}
    assert "rows 2" in (shown := capsys.readouterr().out) and "1 listed" in shown
    with misbehaving(interpreter) as server:
        main(options(server, data, output, "--tries", "3"))
    assert len(rows_of(output)) == 2 and len(server.asked) == 1 and not (tmp_path / "zh.listed.jsonl").exists()


def test_tasks_about_a_language_go_by_the_rule(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Correct the grammar of the sentence.", "input": "He go home.", "output": "He goes home."},
        {"instruction": "Give a synonym of 'glad'.", "input": "", "output": "happy"},
        {"instruction": "How many legs has a horse?", "input": "", "output": "It has 4 legs."},
        {"instruction": "羊驼吃什么？", "input": "", "output": "羊驼吃草和干草。"},
    ]
    data = write(tmp_path / "rows.jsonl", rows)
    with misbehaving(interpreter) as server:
        main(options(server, data, tmp_path / "adapt.jsonl"))
        main(options(server, data, tmp_path / "leave.jsonl", "--language_tasks", "leave"))
        main(options(server, data, tmp_path / "drop.jsonl", "--language_tasks", "drop"))
    adapted = rows_of(tmp_path / "adapt.jsonl")
    assert adapted[0]["instruction"].startswith("这是译文") and adapted[0]["output"] == "He goes home."
    assert adapted[1] == rows[1] and adapted[2]["output"].startswith("这是译文") and adapted[3] == rows[3]
    assert card_of(tmp_path / "adapt.jsonl")["counts"] == {
        "about a language: adapted": 1, "about a language: left": 1, "translated": 1,
        "in that language already: left": 1,
    }  # fmt: skip
    assert rows_of(tmp_path / "leave.jsonl")[:2] == rows[:2] and len(rows_of(tmp_path / "drop.jsonl")) == 2


def test_a_glossary_is_told_and_looked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    glossary = tmp_path / "terms.csv"
    glossary.write_text("# ours\nalpaca,羊驼\nfarm,农场\nryegrass,黑麦草\n", encoding="utf-8")

    def speaker(asked: Asked) -> str:
        rules = str(asked["messages"][0]["content"])
        assert "alpaca = 羊驼" in rules and "farm" not in rules
        known = "黑麦草" if "lacks the terms 黑麦草" in last_text(asked) else ""
        return interpreter(asked) + known + ("羊驼" if "alpacas" in last_text(asked) else "")

    data, output = write(tmp_path / "rows.jsonl", PLAIN[:1]), tmp_path / "zh.jsonl"
    with misbehaving(speaker) as server:
        main(options(server, data, output, "--glossary", str(glossary)))
    (row,) = rows_of(output)
    assert "羊驼" in row["instruction"] and "黑麦草" in row["output"] and len(server.asked) == 3
    glossary.write_text("alpaca\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        main(options(server, data, output, "--glossary", str(glossary)))
    assert "terms.csv, line 1: has 1 column;" in capsys.readouterr().err


def test_a_sample_is_shown_side_by_side_and_its_answers_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = write(tmp_path / "rows.jsonl", PLAIN), tmp_path / "zh.jsonl"
    with misbehaving(interpreter) as server:
        main(["translate", "--url", server.url, "--to", "Chinese", "--data_path", str(data), "--sample", "1"])
        shown = capsys.readouterr().out
        assert "=== row 1: translated" in shown and "--- instruction\nName three grasses" in shown
        assert "--- output, Chinese\n这是译文" in shown
        main(options(server, data, output, "--sample", "2"))
        assert not output.exists()
        asked = len(server.asked)
        main(options(server, data, output))
        assert len(server.asked) == asked and len(rows_of(output)) == 3
        with pytest.raises(SystemExit):
            main(["translate", "--url", server.url, "--to", "zh", "--data_path", str(data)])
        assert "--output, or look at some of them first with --sample 5" in capsys.readouterr().err


@pytest.mark.long
def test_a_run_that_is_killed_goes_on_and_ends_in_the_rows_order(tmp_path: Path) -> None:
    rows = [{"instruction": f"What is the use of tool {n}?", "input": "", "output": f"It is good for work {n}."}
            for n in range(60)]  # fmt: skip
    data, output = write(tmp_path / "rows.jsonl", rows), tmp_path / "zh.jsonl"
    with misbehaving(interpreter, "hangs_up", "no_json", seconds=0.03) as server:
        arguments = options(server, data, output, "--concurrency", "4")
        kill_at(15, output, *arguments)
        with output.open("ab") as file:
            file.write(b'{"instr')
        main(arguments)
    assert len(server.answered) - len(set(server.answered)) <= 4
    found = rows_of(output)
    assert len(found) == 60
    assert all(str(number) in row["instruction"] and str(number) in row["output"] for number, row in enumerate(found))


def test_conversations_and_raw_texts_keep_their_shape_and_calls_of_tools_stay(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]}  # fmt: skip
    rows: list[dict[str, Any]] = [
        {"messages": [
            {"role": "system", "content": "You are the keeper of a herd."},
            {"role": "user", "content": "What do they eat?"}, {"role": "assistant", "content": "They eat the grass."},
            {"role": "user", "content": "And in the winter?"}, {"role": "assistant", "content": "Then it is hay."},
        ]},
        {"text": "An alpaca is a member of the camel family that lives in the Andes."},
        {"messages": [{"role": "user", "content": "Is it raining?"}, call,
                      {"role": "tool", "content": "no", "tool_call_id": "c1"},
                      {"role": "assistant", "content": "No, it is dry."}]},
    ]  # fmt: skip
    data, output = write(tmp_path / "rows.jsonl", rows), tmp_path / "zh.jsonl"
    with misbehaving(interpreter) as server:
        main(options(server, data, output))
    first, second, third = rows_of(output)
    assert [message["role"] for message in first["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert all(message["content"].startswith("这是译文") for message in first["messages"])
    assert second["text"].startswith("这是译文") and third["messages"][0]["content"] == "Is it raining?"
    assert card_of(output)["counts"] == {"translated": 2, "with tools: left": 1}
