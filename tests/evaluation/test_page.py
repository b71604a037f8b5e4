"""The page: one file that needs nothing else, whatever the answers hold."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from alpaca.evaluation.claims import Comparison
from alpaca.evaluation.facts import DataFacts, RunFacts
from alpaca.evaluation.figures import draw_curves, draw_lengths, draw_probes, draw_sweep
from alpaca.evaluation.findings import Findings
from alpaca.evaluation.history import Familiarity, History
from alpaca.evaluation.markup import passage
from alpaca.evaluation.page import make_page
from alpaca.evaluation.report import as_json
from alpaca.evaluation.results import Measured, Sample
from alpaca.evaluation.verdict import judge
from alpaca.pages import text
from tests.evaluation.measured import HOSTILE, drift, facts, gain, learnt, measured, probing, sweep

VOID = {"meta", "img", "br"}
BADLY_NAMED = Sample(HOSTILE, HOSTILE, HOSTILE, HOSTILE, 0.5, Comparison(*[(HOSTILE,)] * 4), "knowledge")
HISTORY = History({name: [(1.0, 2.0), (2.0, 1.0)] for name in ("loss", "eval_loss", "learning_rate")}, 3.0, 1.0,
                  Familiarity(2.0, 1.0, HOSTILE))  # fmt: skip


class Checker(HTMLParser):
    """Every tag that is opened is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def findings(found: Measured, history: History = HISTORY, data: DataFacts | None = None) -> Findings:
    run = RunFacts(HOSTILE, "f", "chat", "fp32", 1000, 10, "2026-01-01", {"lora_r": [HOSTILE]}, {"torch": HOSTILE},
                   2, 10.0, 1000, 10**9, 4e6)  # fmt: skip
    data = data or DataFacts(HOSTILE, {"train": 20}, 0.0, 20, 1, 2, {"English": 20}, [10, 20, 30])
    pictures = {
        "scale": draw_sweep(found.sweep) if found.sweep else None,
        "probes": draw_probes(found.probing) if found.probing else None,
        "lengths": draw_lengths(data.lengths, 20, "tokens") if data.lengths else None,
    }
    drawn = draw_curves(history) | {name: png for name, png in pictures.items() if png}
    return Findings(HOSTILE, "today", 12.0, judge(found, None, history), found, history, data, run, drawn)


def hostile() -> Measured:
    return measured(
        samples=[BADLY_NAMED] * 6,
        probing=probing(("logic", 4, 2, 1), examples=[BADLY_NAMED]),
        drift=drift(10, 1, 5, [BADLY_NAMED] * 3),
        notes={
            section: [HOSTILE] for section in ("domain", "gain", "general", "answers", "drift", "sweep", "by_heart")
        },
        gain=gain(0.8, 0.2),
        facts=facts(1, 2, 3, 4),
        learnt=learnt(range(1, 30), [31, 32]),
        languages={HOSTILE: measured().general},
    )


def bare() -> Measured:
    return Measured(general=measured().general, notes={"drift": ["Left out."]})


@pytest.mark.parametrize("made", [hostile, measured, bare])
def test_the_page_is_whole_and_needs_nothing_from_elsewhere(made: Any) -> None:
    page = make_page(findings(made()))
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    names = {tag for tag, _ in checker.tags}
    assert not names & {"script", "link", "iframe", "object", "form", "base"}
    for tag, attributes in checker.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:image/png;base64,").startswith("data:image/png;base64,")
        assert tag != "img" or attributes["alt"]
    assert "url(" not in page and "@import" not in page


def test_texts_of_others_can_neither_hide_nor_turn_the_page_around() -> None:
    page = make_page(findings(hostile()))
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b\x00\x1b]", page)
    assert "\\u202e" in page and "\u2400" in page
    page.encode("utf-8")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("a<b>&\"'", "a&lt;b&gt;&amp;&quot;&#x27;"),
        ("\x07", "\u2407"),
        ("\u2028", "\\u2028"),
        ("\U000e0041", "\\ue0041"),
        ("\ud800", "?"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("a\n\tb", "a\n\tb"),
    ],
)
def test_text(given: str, shown: str) -> None:
    assert text(given) == shown


def test_an_empty_answer_is_said_to_be_empty_and_a_long_one_is_cut() -> None:
    assert "(empty)" in passage(" \n")
    assert "more characters" in passage("x" * 5000) and len(passage("x" * 5000)) < 1500


def test_the_page_begins_with_the_verdict() -> None:
    found = findings(measured())
    page = make_page(found)
    places = [page.index(text(part)) for part in (*found.verdict.sentences, "1. Read these answers", "9. The run")]
    assert places == sorted(places)


def test_the_picture_shows_manner_and_matter_beside_what_was_lost() -> None:
    lost = probing(("logic", 40, 20, 24, 5))
    page = make_page(findings(measured(gain=gain(0.8, 0.2), probing=lost)))
    first = page[: page.index("1. Read these answers")]
    for part in ('class="manner" style="width:80.0%"', 'class="matter" style="width:20.0%"', "what it says: 20 %",
                 'class="lost" style="width:25.0%"', "still passed: 15", "lost: 5"):  # fmt: skip
        assert part in first
    alone = make_page(findings(measured(gain=gain(1.0, 0.0))))
    assert 'class="manner" style="width:100.0%"' in alone and 'class="matter" style' not in alone
    assert "not measured: no rows were held out" in make_page(findings(bare()))


def test_lost_tests_stand_open_and_the_smallest_effect_beside_what_was_not_found() -> None:
    lost = Sample("What is the capital of France?", "Paris", "Paris.", "Lyon.", kind="knowledge")
    page = make_page(findings(measured(probing=probing(("knowledge", 40, 20, 19), examples=[lost]))))
    shown = page[page.index("The test that was lost") :]
    assert shown.index("Lyon.") < shown.index("<details")
    assert "With 40 tests, a fall of up to 5 tests (13 points) could hide" in page
    assert "With 40 rows, a change of the loss by less than about 0.01" in page


def test_what_differs_stands_beside_the_answer() -> None:
    odd = Sample("How long?", "340 days", "?", "300 days", 0.0, Comparison((), ("340 days",), ("Lima",), ("300 days",)))
    page = make_page(findings(measured(samples=[odd])))
    assert "<b>your row says otherwise:</b> 300 days" in page
    assert "<b>not in your row:</b> Lima" in page and "<b>only in your row:</b> 340 days" in page


def test_numbers_are_json_that_any_program_reads() -> None:
    broken = Sample("\ud800", "", "", "", float("nan"))
    numbers = as_json(findings(measured(samples=[broken])))
    again = json.loads(json.dumps(numbers, allow_nan=False))
    assert again["samples"][0]["share"] is None
    assert again["verdict"]["forgetting"] == "nothing"
    assert again["outlook"] == {"still_falling": 1.0, "per_byte": {"rows": 2.0, "english": 1.0, "times": 2.0,
                                "language": again["outlook"]["per_byte"]["language"]}}  # fmt: skip
    assert again["general"]["difference"]["low"] == pytest.approx(-0.01)
    assert {"scale": 0.5, "domain": 2.3, "general": 2.0}.items() <= again["sweep"]["points"][1].items()


def test_a_figure_is_drawn_of_whatever_there_is() -> None:
    assert draw_curves(History()) == draw_curves(History({"loss": [(1.0, 2.0)]})) == {}
    curves = draw_curves(History({name: [(1.0, 2e9), (2.0, 1e9)] for name in ("loss", "memory", "tokens_per_second")}))
    assert set(curves) == {"loss", "memory", "speed"}
    for png in (
        *curves.values(),
        draw_sweep(sweep((0.0, None, 2.0), (1.0, None, 2.1))),
        draw_probes(probing(("logic", 3, 0, 0))),
        draw_lengths([5], 1024, "tokens"),
    ):
        assert png.startswith(b"\x89PNG")


def test_rows_learnt_by_heart_and_rows_not_learnt_are_counted_and_named() -> None:
    page = make_page(findings(measured(learnt=learnt([7, 3], [9], of=900))))
    assert "Looked at: 200 rows that the adapter was trained on, of 900 in all." in page
    assert "2 rows: rows 7, 3. Of 24 held-out rows, 0 would be listed by mistake." in page
    assert "1 row: row 9." in page
    named = [row for row in (7, 3, 9) if f'<th scope="row">{row}</th>' in page]
    assert named == [7, 3, 9]
    assert make_page(findings(measured(learnt=learnt()))).count("None was found.") == 2
