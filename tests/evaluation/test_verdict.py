"""The verdict: plain rules from numbers to sentences, and the scale that is recommended."""

from __future__ import annotations

from typing import Any

import pytest

from alpaca.evaluation.gained import Gained
from alpaca.evaluation.history import Familiarity, History
from alpaca.evaluation.results import Sample, ScalePoint
from alpaca.evaluation.verdict import Forgetting, judge, recommend_scale
from tests.evaluation.measured import change, drift, facts, gain, measured, probing, sweep

EASIER = sweep((0.0, 3.0, 2.0), (0.5, 2.05, 2.04), (1.0, 2.0, 2.2), recommended=0.5)
FRANCE = Sample("What is the capital of France?", "Paris", "Paris.", "Lyon is.", kind="knowledge")
WHO = Sample("Who are you?", "An assistant.", "An assistant.", "A British teacher.", kind="identity")
PROVED = {"gain": gain(0.3, 0.7), "facts": facts(kept=14)}


# --- what was learned -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({}, Gained.UNSPLIT, "It learned your data: the right answers of 40 unseen rows became 2.7 times as likely"),
        ({"gain": gain(0.8, 0.2)}, Gained.MOSTLY_MANNER, "how your answers are written (80 % of the gain) more than"),
        ({"gain": gain(0.3, 0.7)}, Gained.MATTER, "It learned what your answers say (70 % of the gain)"),
        ({"gain": gain(-0.1, 1.1)}, Gained.MATTER, "what your answers say (100 % of the gain)"),
        ({"gain": gain(0.98, 0.02)}, Gained.MANNER, "only how your answers are written, not what they say"),
        ({"gain": gain(1.2, -0.2)}, Gained.MANNER, "as much so after the question of another row"),
        ({"domain": change(3.0, 2.9)}, Gained.UNSPLIT, "11 % likelier, word by word"),
        ({"domain": change(3.0, 3.1)}, Gained.NOTHING, "did not learn your answers"),
        ({"domain": change(3.0, 2.99, spread=0.001)}, Gained.NOTHING, "no likelier than with the base."),
        ({"domain": change(3.0, 2.8, spread=0.3)}, Gained.NOTHING, "would not show a gain below 35 %"),
        ({"domain": None}, Gained.UNKNOWN, "could not be measured"),
    ],
)
def test_what_was_learned_is_told_by_its_kind(changes: dict[str, Any], kind: Gained, says: str) -> None:
    verdict = judge(measured(**changes), None)
    assert verdict.gained == kind and says in verdict.improved
    assert verdict.learned == {Gained.UNKNOWN: None, Gained.NOTHING: False}.get(kind, True)


def test_of_raw_text_nothing_is_said_of_answers() -> None:
    text = measured(domain=change(3.0, 2.5), gain=None, samples=[], facts=None, of_text=True)
    verdict = judge(text, 0.1)
    assert verdict.improved.startswith(
        "It learned your text: 40 parts of it that it had never seen became 65 % likelier"
    )
    assert "--adapter_path" in verdict.advice
    assert verdict.tested[0] == "how likely 40 held-out parts of your text are"
    assert not any("manner" in line or "how they are written" in line for line in verdict.tested + verdict.untested)
    nothing = judge(measured(domain=change(3.0, 3.0), gain=None, of_text=True), 0.1)
    assert "40 parts of it that it had never seen are no likelier" in nothing.improved


def test_an_adapter_that_learned_nothing_is_not_to_be_used() -> None:
    verdict = judge(measured(domain=change(3.0, 3.1)), None)
    assert "Don't use it" in verdict.advice and "python -m alpaca.data" in verdict.advice
    assert verdict.mark == "bad"


# --- what was forgotten ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "forgetting", "says"),
    [
        ({"general": change(2.0, 2.05)}, Forgetting.LITTLE, "word by word, 5 % less likely"),
        ({"general": change(2.0, 2.2)}, Forgetting.CLEAR, "18 % less likely"),
        ({"general": change(2.0, 3.0)}, Forgetting.MUCH, "63 % less likely"),
        ({"general": change(2.0, 2.2, spread=0.3)}, Forgetting.NOTHING, "as likely as before"),
        ({"general": change(2.2, 2.0)}, Forgetting.NOTHING, "22 % likelier"),
        ({"probing": probing(("logic", 50, 40, 34))}, Forgetting.CLEAR, "6 of the 40 small tests that the base passed"),
        ({"probing": probing(("logic", 50, 40, 35))}, Forgetting.UNSURE, "5 of the 40 small tests"),
        ({"probing": probing(("logic", 50, 40, 39))}, Forgetting.UNSURE, "1 of the 40 small tests"),
        ({"probing": probing(("logic", 50, 40, 20))}, Forgetting.MUCH, "20 of the 40 small tests"),
        ({"probing": probing(("logic", 9, 0, 0))}, Forgetting.NOTHING, "failed all of them"),
        (
            {"probing": probing(("logic", 50, 30, 36), ("identity", 12, 9, 2))},
            Forgetting.CLEAR,
            "7 of the 9 tests of saying what it is that the base passed are lost",
        ),
        ({"drift": drift(100, 0, 40)}, Forgetting.MUCH, "40 of 100 answers to unrelated questions talk like your data"),
        ({"drift": drift(100, 2, 4)}, Forgetting.UNSURE, "4 of 100 answers"),
        ({"drift": drift(20, 0, 1)}, Forgetting.NOTHING, "1 of 20 answers"),
        ({"drift": None, "probing": None}, Forgetting.NOTHING, "as likely as before"),
    ],
)  # fmt: skip
def test_each_sign_of_forgetting_is_seen_and_said(changes: dict[str, Any], forgetting: Forgetting, says: str) -> None:
    verdict = judge(measured(**changes), replay_ratio=0.0)
    assert verdict.forgetting == forgetting
    assert says in verdict.forgotten
    assert ("clearly" in verdict.forgotten) == (forgetting == Forgetting.CLEAR)


def test_losses_that_are_hidden_behind_what_was_won_are_counted_and_the_worst_is_named() -> None:
    """More tests are passed than before, and still France has another capital."""
    hidden = probing(("knowledge", 20, 10, 9, 2), ("format", 20, 8, 14, 3), examples=[FRANCE, WHO])
    verdict = judge(measured(probing=hidden), 0.1)
    assert verdict.forgetting == Forgetting.UNSURE
    assert "5 of the 18 small tests that the base passed are lost" in verdict.forgotten
    assert "(“What is the capital of France?” – “Lyon is.”), 10 others won" in verdict.forgotten
    assert verdict.forgotten.endswith("which may be chance.")


def test_the_interval_decides_the_word_whatever_the_difference() -> None:
    """18 → 15 of 40 tests, with many changes in both directions, says nothing; 6 lost and none won does."""
    unsure = judge(measured(probing=probing(("logic", 40, 18, 15, 9))), 0.1)
    assert unsure.forgetting == Forgetting.UNSURE and "clearly" not in unsure.forgotten
    sure = judge(measured(probing=probing(("logic", 40, 18, 12, 6))), 0.1)
    assert sure.forgetting >= Forgetting.CLEAR and "may be chance" not in sure.forgotten


def test_a_kind_that_is_lost_is_shown_by_an_example_of_its_own() -> None:
    lost = probing(("knowledge", 40, 30, 29, 1), ("identity", 12, 9, 2), examples=[FRANCE, WHO])
    assert "“Who are you?” – “A British teacher.”" in judge(measured(probing=lost), 0.1).forgotten


def test_where_nothing_was_found_it_says_what_could_hide() -> None:
    verdict = judge(measured(probing=probing(("logic", 40, 18, 18))), 0.1)
    assert "Nothing was found to be forgotten: of 40 small tests the base passed 18, and none" in verdict.forgotten
    assert "could hide a fall by 5 tests of 40 and a change below 1 % on general questions" in verdict.forgotten


# --- what to do -----------------------------------------------------------------------------------------------------
def test_no_adapter_is_to_be_used_on_the_strength_of_losses() -> None:
    verdict = judge(measured(samples=[FRANCE] * 8), 0.1)
    assert verdict.mark == "mixed"
    assert "Whether its answers are true was not tested: read the 8 below, the most doubtful first" in verdict.advice
    assert any("true" in part for part in verdict.untested)
    assert any("manner" in part or "only how" in part for part in verdict.untested)
    doubtful = judge(measured(samples=[FRANCE] * 8, facts=facts(missing=9, invented=6, contradicted=1)), 0.1)
    assert "7 numbers and names in them are not in your rows" in doubtful.advice
    assert any("of which they have 0 of 9" in part for part in doubtful.untested)


def test_a_manner_is_good_for_manner_only() -> None:
    verdict = judge(measured(gain=gain(1.0, 0.0)), 0.1)
    assert "use it for how it writes, and trust nothing that it says" in verdict.advice
    assert any("For more of the matter" in hint for hint in verdict.hints) and verdict.mark == "mixed"


@pytest.mark.parametrize(
    ("changes", "mark"),
    [
        ({}, "good"),
        ({"facts": None}, "mixed"),
        ({"facts": facts(kept=14, checked=11)}, "mixed"),
        ({"facts": facts(kept=13, missing=1)}, "mixed"),
        ({"facts": facts(kept=14, invented=1)}, "mixed"),
        ({"facts": facts(kept=14, contradicted=1)}, "mixed"),
        ({"gain": None}, "mixed"),
        ({"gain": gain(1.0, 0.0)}, "mixed"),
        ({"probing": None}, "mixed"),
        ({"drift": None}, "mixed"),
        ({"domain": None}, "mixed"),
        ({"probing": probing(("logic", 40, 18, 20, 1))}, "mixed"),
        ({"general": change(2.0, 2.05)}, "mixed"),
        ({"general": change(2.0, 3.0)}, "bad"),
        ({"domain": change(3.0, 3.1)}, "bad"),
    ],
)
def test_only_what_was_tested_in_every_way_and_holds_is_green(changes: dict[str, Any], mark: str) -> None:
    verdict = judge(measured(**(PROVED | changes)), 0.1)
    assert verdict.mark == mark
    assert mark != "good" or ("All that its answers say could be checked" in verdict.advice and not verdict.untested)


@pytest.mark.parametrize(
    ("ratio", "advice"),
    [
        (None, "--replay_ratio 0.1"),
        (0.0, "--replay_ratio 0.1"),
        (0.1, "--replay_ratio 0.2 instead of 0.1"),
        (0.2, "--replay_ratio 0.3 instead of 0.2"),
        (0.3, "fewer epochs"),
    ],
)
def test_clear_forgetting_is_answered_with_more_replay_than_there_was(ratio: float | None, advice: str) -> None:
    verdict = judge(measured(general=change(2.0, 2.2)), ratio)
    assert any(advice in hint for hint in verdict.hints)
    assert "questions like yours, and for nothing else" in verdict.advice


def test_a_scale_that_eases_the_forgetting_is_named_and_one_that_does_not_is_not() -> None:
    def named(**changes: Any) -> bool:
        return any("adapter_scale 0.5" in hint for hint in judge(measured(**changes), 0.1).hints)

    assert named(general=change(2.0, 2.2), sweep=EASIER) and named(general=change(2.0, 2.05), sweep=EASIER)
    useless = sweep((0.0, 3.0, 2.0), (0.5, 2.05, 2.19), (1.0, 2.0, 2.2), recommended=0.5)
    assert not named(general=change(2.0, 2.2), sweep=useless)
    assert not named(sweep=EASIER)


def test_a_base_that_hardly_knows_the_language_and_a_loss_that_still_fell_are_said() -> None:
    falling = History({"eval_loss": [(10.0, 2.5), (20.0, 2.3), (30.0, 2.2)]}, 3.0, 2.2)
    assert any("still falling" in hint and "--num_epochs" in hint for hint in judge(measured(), 0.1, falling).hints)
    done = History({"eval_loss": [(10.0, 2.5), (20.0, 2.21), (30.0, 2.2)]}, 3.0, 2.2)
    assert judge(measured(), 0.1, done).hints == []
    strange = History(familiar=Familiarity(2.0, 0.8, "German"))
    assert any("hardly knows German" in hint and "2.5 times" in hint for hint in judge(measured(), 0.1, strange).hints)
    assert judge(measured(), 0.1, History(familiar=Familiarity(0.9, 0.8, "German"))).hints == []


# --- the scale ------------------------------------------------------------------------------------------------------
def points(*values: tuple[float, float | None, float]) -> list[ScalePoint]:
    return [ScalePoint(*value) for value in values]


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([(0, 3.0, 2.0), (0.5, 2.5, 2.1), (0.75, 2.09, 2.2), (1, 2.0, 2.4)], 0.75),
        ([(0, 3.0, 2.0), (0.5, 2.08, 2.1), (0.75, 2.05, 2.2), (1, 2.0, 2.4)], 0.5),
        ([(0, 3.0, 2.0), (0.5, 2.11, 2.1), (1, 2.0, 2.4)], 1.0),
        ([(0, 3.0, 2.0), (0.5, 1.9, 2.1), (1, 2.0, 2.0)], 1.0),
        ([(0, 3.0, 2.0), (0.5, 2.0, 2.0), (1, 2.0, 2.0)], 1.0),
        ([(0, 3.0, 2.0), (0.5, 3.0, 2.0), (1, 3.1, 2.0)], None),
        ([(0, None, 2.0), (0.5, None, 2.0), (1, None, 2.0)], None),
    ],
)
def test_the_recommended_scale_keeps_the_gain_at_the_least_general_loss(values: Any, scale: float | None) -> None:
    assert recommend_scale(points(*values)) == scale
