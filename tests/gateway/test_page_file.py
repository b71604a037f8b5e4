"""The page as a file: small, of one piece, and with a policy that lets nothing else in."""

from __future__ import annotations

import re

from alpaca.gateway.page import PAGE, page_response


def test_it_is_one_small_file_that_asks_nobody_else() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert len(text.encode()) < 150_000
    assert not re.findall(r"https?://(?!localhost)", text)
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*\b(?:src|href)=[\"'](?!data:)", text)
    assert not re.findall(r"\son\w+=|\sstyle=|javascript:|innerHTML|outerHTML|insertAdjacentHTML|\beval\(", text)


def test_its_policy_allows_its_own_script_and_style_and_nothing_else() -> None:
    policy = page_response().headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules.pop("default-src") == "'none'" and rules.pop("connect-src") == "'self'"
    assert re.fullmatch(r"'sha256-[\w+/]{43}='", rules.pop("script-src"))
    assert re.fullmatch(r"'sha256-[\w+/]{43}='", rules.pop("style-src"))
    assert rules == {"img-src": "data:", "base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'"}
