"""A model on a server that misbehaves: asked again where that helps, and told apart where it does not."""

from __future__ import annotations

import asyncio

import pytest

from alpaca.errors import BadSetting, ModelRefused, QuestionFailed
from alpaca.synthesis import patience
from alpaca.synthesis.patience import LONGEST, pause_before
from alpaca.synthesis.question import Question, Reply
from alpaca.synthesis.server import ServerModel
from tests.synthesis.misbehaving import Asked, Misbehaving, last_text, misbehaving

HELLO = Question((("user", "Hello"),), 20, 0.5, seed=3)


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def echo(asked: Asked) -> str:
    return f"You said {last_text(asked)}"


def ask(server: Misbehaving, *, tries: int = 4, seconds: float = 20.0) -> Reply:
    async def one() -> Reply:
        model = ServerModel(server.url, say=print, tries=tries, seconds=seconds)
        try:
            return await model.ask(HELLO)
        finally:
            await model.close()

    return asyncio.run(one())


@pytest.mark.parametrize(
    "fault",
    ["busy", "busy_for_a_moment", "busy_until", "broken", "hangs_up", "half", "half_a_stream", "no_json", "html",
     "other_json", "odd_choices"],
)  # fmt: skip
def test_a_fault_that_may_pass_is_waited_out_and_told_once(fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    with misbehaving(echo, fault, fault) as server:
        reply = ask(server)
    assert reply == Reply("You said Hello", True, 100, 50)
    assert len(server.asked) == 3 and capsys.readouterr().out.count("are asked again") == 1


def test_an_answer_that_drips_is_given_up_and_asked_for_again() -> None:
    with misbehaving(echo, "drips") as server:
        reply = ask(server, seconds=0.7)
    assert reply.text == "You said Hello" and len(server.asked) == 2


def test_a_fault_that_stays_ends_the_question_and_tells_the_last_fault() -> None:
    with misbehaving(echo, *["broken"] * 3) as server, pytest.raises(QuestionFailed, match=r"in 3 tries.*HTTP 500"):
        ask(server, tries=3)
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("fault", "message"),
    [("forbidden", "OPENAI_API_KEY"), ("no_such_model", "refuses model 'one'"), ("out_of_money", "used up")],
)
def test_what_no_repetition_mends_ends_the_work_at_once(fault: str, message: str) -> None:
    with misbehaving(echo, fault) as server, pytest.raises(ModelRefused, match=message):
        ask(server)
    assert len(server.asked) == 1


def test_a_question_that_is_refused_is_not_asked_again() -> None:
    with misbehaving(echo, "refused") as server, pytest.raises(QuestionFailed, match="against our policy"):
        ask(server)
    assert len(server.asked) == 1


def test_a_model_that_takes_other_fields_gets_them(capsys: pytest.CaptureFixture[str]) -> None:
    with misbehaving(echo, "newer_limit", "own_temperature") as server:
        reply = ask(server)
    assert reply.text == "You said Hello"
    last = server.asked[-1]
    assert last["max_completion_tokens"] == 20 and last["seed"] == 3
    assert not {"max_tokens", "temperature"} & last.keys()
    assert "takes no temperature" in capsys.readouterr().out


def test_an_answer_that_ran_into_its_limit_is_known() -> None:
    with misbehaving(echo, "cut_off") as server:
        reply = ask(server)
    assert not reply.whole


def test_what_a_model_thinks_to_itself_is_left_out() -> None:
    with misbehaving(lambda asked: "<think>hm, hay\n</think>\n\nGrass.") as server:
        reply = ask(server)
    assert reply.text == "Grass."


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "schlüssel")
    with pytest.raises(BadSetting, match="OPENAI_API_KEY has characters"):
        ServerModel("http://127.0.0.1:9", "m", say=print)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://x:0", "http://[::1"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(BadSetting, match="--url"):
        ServerModel(url, "m", say=print)


def test_who_does_not_answer_at_all_is_named() -> None:
    with pytest.raises(ModelRefused, match=r"127\.0\.0\.1:9/v1 does not list its models"):
        ServerModel("http://127.0.0.1:9", say=print)


def test_waits_grow_to_a_limit_and_a_server_s_wish_comes_first() -> None:
    waits = [pause_before(attempt) for attempt in range(1, 40)]
    assert all(0 < wait <= LONGEST for wait in waits) and waits[-1] >= LONGEST / 2
    assert pause_before(1, {"retry-after": "7"}) == 7
    assert pause_before(1, {"retry-after": "1e9"}) == 600
    assert pause_before(1, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert pause_before(1, {"retry-after": "soon"}) < 1
