"""The page in real headless Chromium, in front of real servers. `make test-page` runs it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from math import comb
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.gateway.running import CogProcess, RunningGateway, other_model, text_of

pytestmark = pytest.mark.page
SHOTS = os.environ.get("PAGE_SHOTS")
"""A folder for pictures of the page; none are taken without it."""
HOSTILE = (
    "<script>window.hacked=1</script> <img src=x onerror=window.hacked=2> [click](javascript:window.hacked=3) "
    "<a href=https://evil.example>link</a> **<b onclick=1>bold</b>** `<i>code</i>` \u202eevil\u202c \u0007 "
    "</div></article>"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    assert found, "there is no Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def faults() -> list[str]:
    return []


@pytest.fixture
def page(browser: Browser, gateway: RunningGateway, faults: list[str]) -> Iterator[Page]:
    """The page in front of the tiny base, at 1200 pixels; whatever its script complains of fails the test."""
    with browser.new_context(viewport={"width": 1200, "height": 900}, locale="en-US", accept_downloads=True) as context:
        yield opened(context.new_page(), gateway, faults)
    assert not faults


@pytest.fixture(scope="module")
def echo(other_project: Path) -> Iterator[RunningGateway]:
    with CogProcess(other_project) as server, RunningGateway("--name", "echo", upstreams=[server.url]) as gateway:
        yield gateway.wait()


def opened(page: Page, gateway: RunningGateway, faults: list[str]) -> Page:
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.on("dialog", lambda dialog: faults.append(dialog.message))
    page.on("request", lambda request: None if request.url.startswith((gateway.url, "data:", "blob:"))
            else faults.append(f"it asks {request.url}"))  # fmt: skip
    page.set_default_timeout(30_000)
    page.goto(gateway.url)
    page.wait_for_selector("#models select")
    return page


def shoot(page: Page, name: str) -> None:
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


def setting(page: Page, **values: Any) -> None:
    if not page.locator("#drawer").evaluate("drawer => drawer.open"):
        page.click("#drawer summary")
    for name, value in values.items():
        page.fill(f"#{name}", str(value))


def ask(page: Page, text: str) -> None:
    page.fill("#prompt", text)
    page.keyboard.press("Control+Enter")


def ended(page: Page) -> None:
    page.wait_for_selector("#stop:disabled")
    page.wait_for_timeout(400)  # what came last is drawn


def answers(page: Page) -> list[str]:
    """The newest answer of each column."""
    return [column.locator(".said").last.inner_text() for column in page.locator("#columns article").all()]


# --- Ask ----------------------------------------------------------------------------------------------------------
def test_both_columns_stream_at_the_same_time_and_say_what_the_server_says(page: Page, gateway: RunningGateway) -> None:
    setting(page, temperature=0, max_tokens=40)
    ask(page, "hay")
    ended(page)
    models = [article.get_attribute("aria-label") for article in page.locator("#columns article").all()]
    assert models[1] == "a" and len(models) == 2
    for model, shown in zip(models, answers(page), strict=True):
        said = text_of(gateway.chat(model=model, temperature=0, max_tokens=40))
        plain = re.sub(r"[\s*`]|⟨U\+[0-9A-F]+⟩", "", said)
        hidden = re.sub(r"[\x00-\x1f\x7f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]", "", plain)
        assert re.sub(r"[\s*`]|⟨U\+[0-9A-F]+⟩", "", shown)[:20] == hidden[:20]
    for figures in page.locator("#columns .figures").all_inner_texts():
        assert re.search(
            r"40 tokens · [\d.]+ tokens/s · first text [\d.]+ s · [\d.]+ answers together · seed \d+", figures
        )
    shoot(page, "ask-1200")


def test_the_strength_of_an_adapter_is_asked_for(page: Page, gateway: RunningGateway) -> None:
    page.locator("#models input[type=range]").last.fill("0.5")
    setting(page, temperature=0, max_tokens=5)
    ask(page, "hay")
    ended(page)
    expect(page.locator("#columns article").nth(1)).to_have_attribute("aria-label", "a@0.5")
    assert "a@0.5: ok" in gateway.log()


def test_three_columns_and_two(page: Page) -> None:
    page.click("#add")
    expect(page.locator("#models .model")).to_have_count(3)
    expect(page.locator("#add")).to_be_hidden()
    setting(page, max_tokens=3)
    ask(page, "hay")
    ended(page)
    expect(page.locator("#columns article")).to_have_count(3)
    page.get_by_role("button", name="Remove 1").click()
    expect(page.locator("#columns article")).to_have_count(2)


def test_stop_and_ask_again(browser: Browser, echo: RunningGateway, faults: list[str]) -> None:
    with browser.new_context(locale="en-US") as context:
        page = opened(context.new_page(), echo, faults)
        page.click("#add")
        long_answers(page)
        ask(page, "hay sleep:2 grass")
        expect(page.locator("#columns .said").first).to_contain_text("hay")
        page.keyboard.press("Escape")
        ended(page)
        assert page.locator("#columns .figures").all_inner_texts() == ["stopped", "stopped"]
        assert "grass" not in "".join(answers(page))
        page.fill("#max_tokens", "1")
        page.click("#again")
        expect(page.locator("#columns .said").nth(1)).to_have_text("hay", timeout=30_000)
        ended(page)
        assert answers(page) == ["hay", "hay"]
    assert not faults


def test_the_seed_is_drawn_anew_unless_it_is_kept(page: Page) -> None:
    setting(page, max_tokens=6, temperature=1)
    ask(page, "hay")
    ended(page)
    first, said = page.input_value("#seed"), answers(page)
    page.check("#keep")
    page.click("#again")
    ended(page)
    assert page.input_value("#seed") == first and answers(page) == said
    page.uncheck("#keep")
    page.click("#again")
    ended(page)
    assert page.input_value("#seed") != first


def test_a_conversation_and_an_earlier_turn_that_is_changed(
    browser: Browser, echo: RunningGateway, faults: list[str]
) -> None:
    with browser.new_context(locale="en-US") as context:
        page = opened(context.new_page(), echo, faults)
        page.check("input[value=conversation]")
        long_answers(page)
        for text in ("one", "two", "three"):
            ask(page, text)
            ended(page)
        assert "User: one" in answers(page)[0] and "User: three" in answers(page)[0]
        page.get_by_role("button", name="Edit 2").click()
        expect(page.locator("#prompt")).to_have_value("two")
        expect(page.locator("#columns .you")).to_have_count(1)
        ask(page, "four")
        ended(page)
        assert "User: one" in answers(page)[0] and "User: four" in answers(page)[0] and "three" not in answers(page)[0]
        page.click("#fresh")
        expect(page.locator("#columns article")).to_have_count(0)
    assert not faults


def long_answers(page: Page) -> None:
    setting(page, max_tokens=99999)


def test_what_is_copied_can_be_run(page: Page, gateway: RunningGateway) -> None:
    setting(page, temperature=0, max_tokens=6, system='It\'s brief: "$HOME" `id`')
    ask(page, "Don't say 'hay' \"twice\" $HOME `id`\nand a second line")
    ended(page)
    page.click("#copy")
    curl = page.inner_text("#copied-text")
    page.click("[data-form=python]")
    program = page.inner_text("#copied-text")
    page.click("[data-form=json]")
    request = json.loads(page.inner_text("#copied-text"))["request"]
    expected = text_of(httpx.post(f"{gateway.url}/v1/chat/completions", json=request, timeout=60))
    said = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, check=True).stdout
    assert json.loads(said)["choices"][0]["message"]["content"] == expected
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said == expected


# --- what a model may say -------------------------------------------------------------------------------------------
def test_nothing_that_a_model_says_becomes_anything_but_text(
    browser: Browser, echo: RunningGateway, faults: list[str]
) -> None:
    with browser.new_context(locale="en-US") as context:
        page = opened(context.new_page(), echo, faults)
        long_answers(page)
        ask(page, HOSTILE)
        ended(page)
        said = page.locator("#columns .said")
        for tag in ("script", "img", "a", "b", "i", "iframe", "article"):
            assert said.locator(tag).count() == 0, tag
        text = said.inner_text()
        assert "<script>window.hacked=1</script>" in text and "<img src=x onerror=window.hacked=2>" in text
        assert "⟨U+202E⟩evil⟨U+202C⟩" in text and "\u202e" not in text and "⟨U+0007⟩" in text
        assert page.locator("html").evaluate("() => window.hacked") is None
        shoot(page, "hostile")
    assert not faults


def test_a_line_of_a_million_characters_neither_stops_nor_widens_the_page(
    browser: Browser, echo: RunningGateway, faults: list[str]
) -> None:
    with browser.new_context(locale="en-US", viewport={"width": 390, "height": 844}) as context:
        page = opened(context.new_page(), echo, faults)
        long_answers(page)
        ask(page, "many:1000000")
        ended(page)
        expect(page.locator("#columns .said")).to_contain_text("800,000 more characters are not shown")
        started = time.monotonic()
        page.click("#tab-vote")
        page.click("#tab-ask")
        assert time.monotonic() - started < 20
        assert not overflows(page)
    assert not faults


def test_markdown_is_drawn_and_code_is_kept(browser: Browser, echo: RunningGateway, faults: list[str]) -> None:
    with browser.new_context(locale="en-US") as context:
        page = opened(context.new_page(), echo, faults)
        long_answers(page)
        ask(
            page,
            "# Hay\n\n- **dry** grass\n- *cut* `early`\n\n3. third\n\n```\nif a < b:\n    x = **y\n```\n"
            "> said\n\n2 * 3 * 4",
        )
        ended(page)
        said = page.locator("#columns .said")
        assert said.locator("h3").inner_text() == "Hay"
        assert [item.inner_text() for item in said.locator("ul li").all()] == ["dry grass", "cut early"]
        assert said.locator("ol").get_attribute("start") == "3"
        assert said.locator("pre code").inner_text() == "if a < b:\n    x = **y"
        assert said.locator("blockquote").inner_text() == "said"
        assert said.locator("p").last.inner_text() == "2 * 3 * 4"
    assert not faults


def test_a_server_that_dies_is_told_in_its_column(browser: Browser, tmp_path: Path, faults: list[str]) -> None:
    with (
        CogProcess(other_model(tmp_path)) as server,
        RunningGateway("--name", "echo", upstreams=[server.url]) as gateway,
        browser.new_context(locale="en-US") as context,
    ):
        page = opened(context.new_page(), gateway.wait(), faults)
        long_answers(page)
        ask(page, "hay sleep:30 grass")
        expect(page.locator("#columns .said")).to_contain_text("hay")
        server.kill()
        expect(page.locator("#columns .error")).to_contain_text("broke off")
        expect(page.locator("#stop")).to_be_disabled()
        expect(page.locator("#columns .said")).to_contain_text("hay")
        assert not faults
        deadline = time.monotonic() + 30
        while httpx.get(f"{gateway.url}/health").status_code == 200:
            assert time.monotonic() < deadline
        ask(page, "hay")
        expect(page.locator("#columns .error")).to_contain_text("no server is ready")


def test_a_key_is_asked_for_where_one_is_needed(browser: Browser, other_project: Path, tmp_path: Path) -> None:
    from alpaca.gateway.caller import add_key

    key = add_key(tmp_path / "keys.json", "anna")
    options = ("--name", "echo", "--keys", str(tmp_path / "keys.json"))
    with (
        CogProcess(other_project) as server,
        RunningGateway(*options, upstreams=[server.url]) as gateway,
        browser.new_context(locale="en-US") as context,
    ):
        gateway.wait()
        page = context.new_page()
        page.goto(gateway.url)
        page.fill("#key", key)
        page.keyboard.press("Enter")
        page.wait_for_selector("#models select")
        long_answers(page)
        ask(page, "hay")
        ended(page)
        assert answers(page) == ["hay"]


# --- Which is better? -------------------------------------------------------------------------------------------------
def test_a_vote_is_blind_counted_and_saved(page: Page, tmp_path: Path) -> None:
    setting(page, max_tokens=8, temperature=0)
    page.click("#tab-vote")
    questions = tmp_path / "questions.jsonl"
    rows: list[Any] = [{"instruction": f"Question {n}", "input": ""} for n in range(5)] + [
        {"messages": [{"role": "user", "content": "Question 5"}]}, "Question 6"]  # fmt: skip
    questions.write_text("\n".join(json.dumps(row) for row in rows))
    page.set_input_files("#file", questions)
    expect(page.locator("#questions")).to_have_value("\n".join(f"Question {n}" for n in range(7)))
    page.click("#start")
    keys = ["1", "2", "1", "0", "2", "1", "1"]
    for number, vote in enumerate(keys):
        expect(page.locator("#progress")).to_have_text(f"Question {number + 1} of 7")
        assert page.locator("#ballot").inner_text().count("tiny") == 0
        if number == 0:
            shoot(page, "vote-1200")
        page.keyboard.press(vote)
    expect(page.locator("#result")).to_contain_text("by chance in")
    shoot(page, "result-1200")
    with page.expect_download() as saved:
        page.click("#save-votes")
    votes = json.loads(Path(saved.value.path()).read_text())
    with page.expect_download() as saved:
        page.click("#save-rows")
    rows = [json.loads(line) for line in Path(saved.value.path()).read_text().splitlines()]
    winners = [vote["winner"] for vote in votes["votes"]]
    assert len(winners) == 7 and winners[3] is None and len(rows) == 6
    decided = [vote for vote in votes["votes"] if vote["winner"] is not None]
    for row, vote in zip(rows, decided, strict=True):
        assert (
            row["chosen"] == vote["answers"][vote["winner"]] and row["rejected"] == vote["answers"][1 - vote["winner"]]
        )
    most = max(winners.count(0), winners.count(1))
    p = min(1, 2 * sum(comb(6, k) for k in range(most, 7)) / 2**6)
    expect(page.locator("#result")).to_contain_text(f"by chance in {100 * p:.{1 if p < 0.1 else 0}f} %")
    assert ("not more than chance" in page.inner_text("#result")) == (p >= 0.05)  # the columns' order is drawn


@pytest.mark.parametrize(
    ("wins", "n", "p", "low", "high"),
    [  # scipy.stats.binomtest(wins, n): pvalue, and proportion_ci(method="exact")
        (9, 10, 0.021484375, 0.5549839, 0.9974714),
        (5, 10, 1.0, 0.1870860, 0.8129140),
        (20, 20, 1.9073486e-06, 0.8315665, 1.0),
        (60, 100, 0.0568879, 0.4972092, 0.6967052),
        (0, 0, 1.0, 0.0, 1.0),
    ],
)
def test_the_sign_test_and_its_interval_are_right(
    page: Page, wins: int, n: int, p: float, low: float, high: float
) -> None:
    said = page.locator("html").evaluate("(_, [wins, n]) => [signTest(wins, n), ...interval(wins, n)]", [wins, n])
    assert said == pytest.approx([p, low, high], abs=1e-6)


def test_two_columns_that_are_the_same_are_not_put_to_the_vote(page: Page) -> None:
    page.click("#tab-vote")
    page.locator("#vote-models select").first.select_option("a")
    page.fill("#questions", "hay")
    page.click("#start")
    expect(page.locator("#fault")).to_contain_text("same model at the same strength")


# --- What the model sees ------------------------------------------------------------------------------------------
def test_the_prompt_is_shown_with_its_markers(page: Page, gateway: RunningGateway) -> None:
    setting(page, system="Be brief.")
    page.fill("#prompt", "hay")
    page.click("#tab-see")
    page.click("#show")
    asked = {"model": "a", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hay"}]}
    prompt = httpx.post(f"{gateway.url}/prompt", json=asked).json()
    expect(page.locator("#seen article")).to_have_count(2)
    assert page.locator("#seen pre").nth(1).inner_text() == prompt["prompt"].rstrip("\n") or (
        page.locator("#seen pre").nth(1).text_content() == prompt["prompt"]
    )
    assert "<|im_start|>" in page.locator("#seen mark").all_inner_texts()
    expect(page.locator("#seen .figures").nth(1)).to_have_text(f"{prompt['tokens']} tokens")
    shoot(page, "see-1200")


# --- for everyone -----------------------------------------------------------------------------------------------------
def overflows(page: Page) -> bool:
    return bool(page.locator("html").evaluate("html => html.scrollWidth > innerWidth"))


@pytest.mark.parametrize("language", ["en", "de", "zh"])
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_it_fits_a_phone_in_every_language(
    browser: Browser, gateway: RunningGateway, faults: list[str], language: str, scheme: Any
) -> None:
    with browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme, locale=language) as context:
        page = opened(context.new_page(), gateway, faults)
        assert page.locator("html").get_attribute("lang") == language
        setting(page, max_tokens=40)
        ask(page, "hay")
        ended(page)
        for tab in ("ask", "vote", "see"):
            page.click(f"#tab-{tab}")
            assert not overflows(page)
            shoot(page, f"{tab}-390-{language}-{scheme}")
        assert all(page.locator("[data-t]").all_text_contents())
    assert not faults


def test_every_text_is_there_in_every_language(page: Page) -> None:
    texts = page.locator("html").evaluate(
        "() => Object.fromEntries(Object.entries(TEXTS).map(([k, v]) => [k, Object.keys(v)]))"
    )
    assert set(texts["en"]) == set(texts["de"]) == set(texts["zh"])
    used = page.locator("html").evaluate("() => [...document.querySelectorAll('[data-t]')].map((e) => e.dataset.t)")
    assert set(used) <= set(texts["en"])


def test_it_can_be_used_by_keyboard_and_every_control_has_a_name(page: Page) -> None:
    page.focus("#tab-ask")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#vote")).to_be_visible()
    expect(page.locator("#tab-vote")).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#ask")).to_be_visible()
    page.click("#drawer summary")
    for tab in ("ask", "vote", "see"):
        page.click(f"#tab-{tab}")
        for control in page.locator("button:visible, select:visible, input:visible, textarea:visible").all():
            name = control.evaluate(
                "e => e.getAttribute('aria-label') || e.textContent || e.labels?.[0]?.textContent || ''"
            )
            assert name.strip(), control.evaluate("e => e.outerHTML")


@pytest.mark.parametrize("dark", [False, True])
def test_its_colours_can_be_told_apart(page: Page, dark: bool) -> None:
    """WCAG's 4.5 to 1 for text."""
    if dark:
        page.click("#theme")
    pairs = [("--ink", "--paper"), ("--dim", "--paper"), ("--dim", "--soft"), ("--ink", "--you"),
             ("--bad", "--bad-soft"),
             ("--on-accent", "--accent"), ("--accent", "--paper"), ("--accent", "--soft")]  # fmt: skip
    for ink, paper in pairs:
        colours = page.locator("html").evaluate(
            "(html, names) => names.map((name) => getComputedStyle(html).getPropertyValue(name).trim())", [ink, paper]
        )
        light, deep = sorted((luminance(colour) for colour in colours), reverse=True)
        assert (light + 0.05) / (deep + 0.05) >= 4.5, (ink, paper, dark)


def luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
