"""Conversations: what is accepted, what is refused and how the refusal is worded."""

from __future__ import annotations

from typing import Any

import pytest

from alpaca.errors import BadMessages
from alpaca.prompts.example import Example, Turn


def said(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": f"{role} {number}"} for number, role in enumerate(roles, 1)]


def test_messages_become_turns_and_a_system_text() -> None:
    example = Example.from_messages(said("system", "user", "assistant", "user", "assistant"), row=7)
    assert example == Example(
        (Turn("user 2", "", "assistant 3"), Turn("user 4", "", "assistant 5")), system="system 1", row=7
    )


def test_the_last_answer_may_be_awaited() -> None:
    assert Example.from_messages(said("user", "assistant", "user")).turns[-1] == Turn("user 3")


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "messages is empty"),
        ("hello", "messages is a text, not a list"),
        ({"role": "user"}, "messages is an object, not a list"),
        (said("system"), "only a system message"),
        (said("user", "user"), "message 2 is from the user where the assistant was expected"),
        (said("user", "assistant", "assistant"), "message 3 is from the assistant where the user was expected"),
        (
            said("assistant", "user"),
            "message 1 is from the assistant where the user was expected: a conversation begins",
        ),
        (said("system", "assistant"), "message 2 is from the assistant where the user was expected"),
        (said("user", "system"), "message 2 is from the system; only the first"),
        (said("system", "system", "user"), "message 2 is from the system; only the first"),
        (said("user", "narrator"), "message 2 has the role 'narrator'; known are system, user, assistant, tool"),
        (said("user", "tool"), "message 2 is from the tool where the assistant was expected: it follows a message"),
        (said("user", "assistant", "tool", "user"), "message 4 is from the user where the assistant was expected"),
        (["hi"], "message 1 is a text, not an object"),
        ([{"role": "user"}], "message 1 has no 'content' (found: role)"),
        ([{"content": "hi"}], "message 1 has no 'role' (found: content)"),
        ([{}], "message 1 has no 'role' (found: none)"),
        ([{"role": "user", "content": 5}], "message 1: 'content' is a number (5), not text"),
        ([{"role": "user", "content": None}], "message 1: 'content' is null, not text"),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            "message 1: 'content' holds a text part that is null, not text",
        ),
        ([{"role": "user", "content": " \n"}], "message 1 (user) is blank"),
        ([{"role": "user", "content": "a\ud83e"}], "message 1: 'content' holds half a character"),
        ([{"role": "user", "content": "a\x00b"}], "message 1: 'content' holds a NUL character, \\u0000, at position 2"),
    ],
)
def test_a_fault_in_messages_is_named(messages: Any, problem: str) -> None:
    with pytest.raises(BadMessages) as refused:
        Example.from_messages(messages)
    assert str(refused.value).startswith("E1004 BadMessages: ")
    assert problem in str(refused.value)


def test_the_key_is_of_the_content_alone() -> None:
    example = Example.single("a", "b", "c", system="s", row=1)
    assert example.key() == Example.single("a", "b", "c", system="s", row=2).key()
    others = [
        Example.single("ab", "", "c", system="s"),
        Example.single("a", "b", None, system="s"),
        Example.single("a", "b", "c"),
        Example((Turn("a", "b", "c"), Turn("a", "b", "c")), "s"),
    ]
    assert len({example.key(), *(other.key() for other in others)}) == 5
