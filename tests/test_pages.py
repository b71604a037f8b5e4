"""The shell of every page: whole, without anything from elsewhere, and safe from whatever is put into it."""

from __future__ import annotations

import jinja2
import pytest
from markupsafe import Markup

from alpaca.pages import Html, page, text

BAD = "<b>\u202e\x1b&\ud800"
SHOWN = "&lt;b&gt;\\u202e␛&amp;?"


def test_a_page_has_its_title_its_style_and_its_body() -> None:
    made = page(
        "Hay", "p { color: red; }", "<h1>{{ title }}</h1>{% for row in rows %}<p>{{ row }}</p>{% endfor %}", rows=[1, 2]
    )
    assert made.startswith("<!doctype html>") and made.endswith("</html>\n")
    assert "<title>Hay</title>" in made and "<h1>Hay</h1><p>1</p><p>2</p>" in made and "p { color: red; }" in made


def test_whatever_is_no_html_is_escaped_wherever_it_comes_in() -> None:
    ours = Html("<i>{}</i>")
    for made in (
        page("", "", "<i>{{ value }}</i>", value=BAD),
        page(BAD, "", "<i>{{ title }}</i>"),
        page("", "", "{{ ours }}", ours=ours.format(BAD)),
        page("", "", "<i>{% for value in values %}{{ value }}{% endfor %}</i>", values=[BAD]),
        ours.format(Html("").join([BAD])),
        Html("<i>") + BAD + Html("</i>"),
        Html("<i>%s</i>") % BAD,
    ):
        assert f"<i>{SHOWN}</i>" in made


def test_html_is_not_escaped_again() -> None:
    assert text(text(BAD)) == text(Markup(SHOWN)) == SHOWN
    assert Html("<i>{}</i>").format(text("<")) == "<i>&lt;</i>"


def test_a_value_that_was_forgotten_is_an_error_and_no_gap() -> None:
    with pytest.raises(jinja2.UndefinedError):
        page("", "", "{{ forgotten }}")
