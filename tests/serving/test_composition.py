"""What a client may write to name the adapters of an answer, and how what can't be meant is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpaca.errors import AlpacaError, BadComposition, ConflictingInputs, OutOfRange
from alpaca.serving.composition import MAX_ADAPTERS, Composition, Part, parse_composition
from alpaca.serving.inputs import request_from_inputs

URL = "https://example.com/a+b:c.zip?signature=secret"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("none", []),
        ("insurance", [("insurance", 1.0)]),
        ("with spaces ", [("with spaces ", 1.0)]),
        ("insurance:0.7", [("insurance", 0.7)]),
        ("insurance:0.7+polite:0.5", [("insurance", 0.7), ("polite", 0.5)]),
        (" insurance : 0.7 + polite ", [("insurance", 0.7), ("polite", 1.0)]),
        ("a:4+b:0+c:.5+d:1e-3", [("a", 4.0), ("b", 0.0), ("c", 0.5), ("d", 0.001)]),
        ("/srv/adapters/a:0.5+./b", [("/srv/adapters/a", 0.5), ("./b", 1.0)]),
        (URL, [(URL, 1.0)]),
        ('[{"name": "c++:2"}]', [("c++:2", 1.0)]),
        ('[{"name": "[a]", "scale": 0.7}, {"url": "https://b.example/b.zip", "scale": 2}]',
         [("[a]", 0.7), ("https://b.example/b.zip", 2)]),
    ],
)  # fmt: skip
def test_a_name_a_composition_of_names_a_url_and_a_list_are_read(text: str, parts: list[tuple[str, float]]) -> None:
    assert [(part.source, part.scale) for part in parse_composition(text).parts] == parts


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("insurance:", BadComposition, "the strength of insurance is '', which is no number"),
        ("insurance:0,7+polite", BadComposition, "the strength of insurance is '0,7', which is no number; a name that"),
        ("lora:v2", BadComposition, "is given in a JSON list"),
        ("a+", BadComposition, "adapter is 'a+': a name is missing"),
        ("+a", BadComposition, "a name is missing"),
        (":0.5", BadComposition, "a name is missing"),
        ("a+none:0.5", BadComposition, "none is the base alone"),
        ("insurance:4.5", OutOfRange, "adapter: the strength of insurance is 4.5: it must be from 0 to 4"),
        ("a+polite:-1", OutOfRange, "the strength of polite is -1.0"),
        ("a:nan", OutOfRange, "the strength of a is nan"),
        ("a:0.5+b+a:0.7", BadComposition, "adapter names a twice"),
        ("+".join("abcdefghi"), BadComposition, "adapter names 9 adapters: at most 8"),
        ("+" * 1000, BadComposition, "1001 adapters"),
        (f"a:0.5+{URL}", BadComposition, "joins names and a URL with +: write them as a JSON list"),
        ("[", BadComposition, "no valid JSON"),
        ("[" * 100_000, BadComposition, "no valid JSON"),
        ("[]", BadComposition, "an empty list"),
        ('["a"]', BadComposition, "adapter, entry 1: it must hold a name or a url"),
        ('[{"name": "a"}, {}]', BadComposition, "entry 2"),
        ('[{"name": "a", "url": "https://a"}]', BadComposition, "a name or a url"),
        ('[{"name": "a", "weight": 1}]', BadComposition, "and nothing else"),
        ('[{"name": 1}]', BadComposition, "name must be an adapter's name"),
        ('[{"name": "none"}]', BadComposition, "name must be an adapter's name, neither a URL nor none"),
        ('[{"name": "https://a/b.zip"}]', BadComposition, "neither a URL"),
        ('[{"url": "a"}]', BadComposition, "url must be a text that begins with https://"),
        ('[{"name": "a", "scale": "1"}]', OutOfRange, "the strength of a is a text"),
        ('[{"name": "a", "scale": true}]', OutOfRange, "the strength of a is true"),
        ('[{"name": "a", "scale": null}]', OutOfRange, "the strength of a is null"),
        ('[{"name": "a", "scale": 1e999}]', OutOfRange, "the strength of a is inf"),
        ('[{"name": "a", "scale": ' + "9" * 4000 + "}]", OutOfRange, "it must be from 0 to 4"),
        ('[{"name": ""}]', OutOfRange, "it must have 1 to 2,048"),
        ("x" * 2049, OutOfRange, "adapter has 2,049 characters: it must have 1 to 2,048"),
        ("x" * 200_000, OutOfRange, "adapter has 200,000 characters"),
        (json.dumps([{"name": str(n)} for n in range(MAX_ADAPTERS + 1)]), BadComposition, "9 adapters: at most 8"),
    ],
)
def test_what_can_not_be_meant_is_refused_with_its_place(text: str, error: type[AlpacaError], says: str) -> None:
    with pytest.raises(error) as caught:
        parse_composition(text)
    assert str(caught.value).startswith(f"{error.code} {error.__name__}: adapter")
    assert says in str(caught.value)


def test_what_gives_access_is_in_no_message() -> None:
    listed = json.dumps([{"url": URL, "scale": 9}])
    for text in (listed, json.dumps([{"url": URL}, {"url": URL}]), f"a+{URL}"):
        with pytest.raises(AlpacaError) as caught:
            parse_composition(text)
        assert "secret" not in str(caught.value)


@given(st.text() | st.text("ab:+.0123456789 []{}\"'"))
def test_any_text_is_read_or_refused_with_a_code(text: str) -> None:
    try:
        composition = parse_composition(text)
    except AlpacaError as error:
        assert error.code in ("E1003", "E1006") and str(error).isprintable()
    else:
        assert len(composition.parts) <= MAX_ADAPTERS


@given(
    st.lists(st.text(min_size=1, max_size=20).filter(lambda n: n != "none" and "://" not in n), unique=True, max_size=8)
)
def test_every_name_can_be_written_in_a_list(names: list[str]) -> None:
    names = [name for name in names if not name.lower().startswith(("data:", "file:"))] or ["a"]
    composition = parse_composition(json.dumps([{"name": name} for name in names]))
    assert [part.source for part in composition.parts] == names


@pytest.mark.parametrize("parts", [("a", "b", "a"), tuple("abcdefghi"), (Path("a"), Path("a"))])
def test_compositions_made_in_this_process_have_the_same_bounds(parts: tuple[Any, ...]) -> None:
    with pytest.raises(BadComposition):
        Composition(tuple(Part(source) for source in parts))


def test_a_request_reads_its_adapters_by_either_name() -> None:
    expected = Composition((Part("a", 0.7), Part("b", 0.5)))
    assert request_from_inputs(prompt="x", adapter="a:0.7+b:0.5").adapter == expected
    assert request_from_inputs(prompt="x", replicate_weights="a:0.7+b:0.5").adapter == expected
    assert request_from_inputs(prompt="x").adapter is request_from_inputs(prompt="x", adapter="").adapter is None
    with pytest.raises(ConflictingInputs, match=r"adapter is a:0\.7 and replicate_weights, its older name, is a"):
        request_from_inputs(prompt="x", adapter="a:0.7", replicate_weights="a")
