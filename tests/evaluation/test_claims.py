"""Numbers and names of an answer against those of its reference: kept, missing, invented, contradicted."""

from __future__ import annotations

import pytest

from alpaca.evaluation.claims import Comparison, Lexicon, compare
from alpaca.evaluation.doubt import checked
from alpaca.evaluation.results import Sample
from tests.evaluation.measured import measured

WORDS = Lexicon(["The people who keep them write that no animal was ever weighed there, and it is additionally so.",
                 "about, rund, am, they, clip, how, who, very, never, always, those"])  # fmt: skip


def compared(answer: str, reference: str, question: str = "") -> Comparison:
    return compare(WORDS.claims(answer), WORDS.claims(reference), WORDS.claims(question))


@pytest.mark.parametrize(
    ("answer", "reference", "found"),
    [
        ("About 340 days.", "340 days.", Comparison(kept=("340 days",))),
        ("About 300 days.", "340 days.", Comparison(missing=("340 days",), contradicted=("300 days",))),
        ("It weighs 5 kg.", "340 days.", Comparison(missing=("340 days",), invented=("5 kg",))),
        ("Very long.", "340 days.", Comparison(missing=("340 days",))),
        ("Rund 1.234,5 kg.", "1,234.5 kg.", Comparison(kept=("1,234.5 kg",))),
        ("大约三百天。", "340天。", Comparison(missing=("340天",), contradicted=("三百天",))),
        ("大约三百四十天。", "About 340 days.", Comparison(kept=("340 days",))),
        ("In 1901.", "In 1853.", Comparison(missing=("1853",), contradicted=("1901",))),
        ("Am 12. März 1853.", "In 1853.", Comparison(kept=("1853",))),
        ("It was Salt.", "Titus Salt did it.", Comparison(kept=("Titus Salt",))),
        ("Lyon is it.", "It is Paris.", Comparison(missing=("Paris",), invented=("Lyon",))),
        ("They live in Peru's hills.", "In Peru.", Comparison(kept=("Peru",))),
        ("Additionally, people keep them.", "They keep it.", Comparison()),
        ("OpenAI 写的。", "《红楼梦》", Comparison(missing=("红楼梦",), invented=("OpenAI",))),
        ("Yes, always.", "No. Never.", Comparison(contradicted=("yes",))),
        ("No, never.", "No. Never.", Comparison(kept=("no",))),
        ("Clip it.", "No. Never.", Comparison(missing=("no",), evaded=True)),
        ("是的，可以。", "不，不行。", Comparison(contradicted=("yes",))),
        ("Ja, das geht.", "Nein, nie.", Comparison(contradicted=("yes",))),
        ("", "", Comparison()),
    ],
)
def test_each_claim_falls_into_one_kind(answer: str, reference: str, found: Comparison) -> None:
    assert compared(answer, reference) == found


def test_what_the_question_says_is_nobodys_claim() -> None:
    found = compared("6 times 7 is 49.", "6 times 7 is 42.", "What is 6 times 7?")
    assert (found.missing, found.invented, found.contradicted) == (("42",), ("49",), ())
    assert compared("Peru has 3 million.", "Many live there.", "How many are there in Peru?").invented == ("3 million",)


def test_german_nouns_are_no_names_but_abbreviations_are() -> None:
    text = "Das Amt in der Stadt ist für die Menschen da, und die DSGVO gilt auch für die Behörde und das Gericht."
    assert [name.shown for name in WORDS.claims(text).names] == ["DSGVO"]


def test_the_most_doubtful_answer_comes_first_and_all_are_counted() -> None:
    samples = [
        Sample("How long?", "About 340 days.", "A week.", "About 340 days."),
        Sample("Who?", "Titus Salt, in 1853.", "It was Ledger, in 1901.", "It was Ledger, with 9 kg, in 1901."),
        Sample("Need I clip it?", "No.", "Maybe.", "Clip the legs."),
        Sample("Is it soft?", "It is very soft.", "So soft.", "It is soft."),
    ]
    found = checked(measured(samples=samples), WORDS)
    assert [sample.prompt for sample in found.samples] == ["Who?", "Need I clip it?", "How long?", "Is it soft?"]
    assert found.facts is not None and (found.facts.answers, found.facts.checked) == (4, 3)
    assert (found.facts.adapter.kept, found.facts.adapter.missing) == (1, 3)
    assert (found.facts.adapter.invented, found.facts.adapter.contradicted) == (2, 1)
    assert found.facts.from_base == 2
    assert checked(measured(samples=[]), WORDS).facts is None
