"""Conversations in chat form: what clients and rows write as messages, read into turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from alpaca.errors import BadMessages
from alpaca.prompts.tools import read_calls
from alpaca.prompts.turn import Call, Result, Turn, text_problem
from alpaca.words import names, type_name

ROLES = ("system", "user", "assistant", "tool")
OLDER = {"function": "tool"}  # OpenAI's first name for it
# Who may speak after whom; the first of them is the one that was expected.
FOLLOWS = {
    "": ("user",), "user": ("assistant",), "assistant": ("user", "tool"), "tool": ("assistant", "tool"),
}  # fmt: skip


class Said(NamedTuple):
    """One message. `name` and `id` are those of a tool's result."""

    role: str
    content: str
    calls: tuple[Call, ...] = ()
    name: str = ""
    id: str = ""


def read_messages(messages: Sequence[Mapping[str, Any]]) -> tuple[str, tuple[Turn, ...]]:
    """The system text and the turns. Raises BadMessages with the number of the first message at fault."""
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise BadMessages(f"messages is {type_name(messages)}, not a list of {{role, content}}")
    if not messages:
        raise BadMessages("messages is empty; it needs at least one message from the user")
    said = [_read(message, number) for number, message in enumerate(messages, 1)]
    system = said.pop(0).content if said[0].role == "system" else ""
    if not said:
        raise BadMessages("there is only a system message; a message from the user must follow it")
    return system, _turns(said, first=len(messages) - len(said) + 1)


def _read(message: Mapping[str, Any], number: int) -> Said:
    if not isinstance(message, Mapping):
        raise BadMessages(f"message {number} is {type_name(message)}, not an object with role and content")
    if "role" not in message:
        raise BadMessages(f"message {number} has no 'role' (found: {names(message)})")
    role = message["role"]
    if problem := text_problem(role):
        raise BadMessages(f"message {number}: 'role' {problem}")
    role = OLDER.get(role, role)
    calls = read_calls(message, f"message {number}") if role == "assistant" else ()
    content = _content(message, number, optional=bool(calls))
    if role not in ROLES:
        raise BadMessages(f"message {number} has the role {role[:40]!r}; known are {', '.join(ROLES)}")
    if role != "tool":
        return Said(role, content, calls)
    return Said(role, content, (), _label(message, "name", number), _label(message, "tool_call_id", number))


def _content(message: Mapping[str, Any], number: int, *, optional: bool) -> str:
    if optional and message.get("content") is None:
        return ""
    if "content" not in message:
        raise BadMessages(f"message {number} has no 'content' (found: {names(message)})")
    content = _joined_parts(message["content"], number)
    if problem := text_problem(content):
        raise BadMessages(f"message {number}: 'content' {problem}")
    return str(content)


def _label(message: Mapping[str, Any], field: str, number: int) -> str:
    value = message.get(field)
    if value is None:
        return ""
    if problem := text_problem(value):
        raise BadMessages(f"message {number}: '{field}' {problem}")
    return str(value)


def _joined_parts(content: object, number: int) -> object:
    """Content that is a list of text parts, as OpenAI's clients send it, as one text; anything else as it is."""
    if not isinstance(content, Sequence) or isinstance(content, str | bytes):
        return content
    texts = []
    for part in content:
        if not isinstance(part, Mapping):
            raise BadMessages(f"message {number}: 'content' is a list of {type_name(part)}, not of {{type, text}}")
        if part.get("type") != "text":
            kind = str(part.get("type"))[:40]
            raise BadMessages(f"message {number}: 'content' holds a part of type {kind!r}; only text is read")
        if problem := text_problem(part.get("text")):
            raise BadMessages(f"message {number}: 'content' holds a text part that {problem}")
        texts.append(part["text"])
    return "".join(texts)


def _turns(said: Sequence[Said], first: int) -> tuple[Turn, ...]:
    """Questions with their answers; `first` is the number that the first message has for people."""
    turns: list[Turn] = []
    asked: Said | None = None
    results: list[Result] = []
    tools: dict[str, str] = {}  # id of a call → the tool that it called
    before = ""
    for number, message in enumerate(said, first):
        _check_order(message.role, before, number)
        if message.role == "user":
            if not message.content.strip():
                raise BadMessages(f"message {number} (user) is blank")
            asked = message
        elif message.role == "tool":
            results.append(Result(message.content, message.name or tools.get(message.id, ""), message.id))
        else:
            turns.append(Turn(_instruction(asked), "", message.content, message.calls, tuple(results)))
            tools |= {call.id: call.name for call in message.calls if call.id}
            asked, results = None, []
        before = message.role
    if before != "assistant":
        turns.append(Turn(_instruction(asked), results=tuple(results)))
    return tuple(turns)


def _instruction(asked: Said | None) -> str:
    return asked.content if asked else ""


def _check_order(role: str, before: str, number: int) -> None:
    if role == "system":
        raise BadMessages(f"message {number} is from the system; only the first message may be")
    if role in FOLLOWS[before]:
        return
    again = "another" if role == before else "a"
    why = f"it follows {again} message from the {before}" if before else "a conversation begins with the user"
    raise BadMessages(f"message {number} is from the {role} where the {FOLLOWS[before][0]} was expected: {why}")
