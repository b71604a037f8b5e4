"""The example: one conversation of one or more turns, whatever form its row had."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alpaca.errors import BadMessages
from alpaca.words import names, type_name

ROLES = ("system", "user", "assistant")
UNWRITABLE = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Turn:
    """What was asked, with an optional input, and the answer; `output` is None where the answer is awaited."""

    instruction: str
    input: str = ""
    output: str | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation. `row` is the 1-based number of its row in the file it came from, 0 for none.

    `raw`: no conversation but plain text, which is the output of a single turn without a question. It is trained as it
    stands, every token of it, without a template.
    """

    turns: tuple[Turn, ...]
    system: str = ""
    row: int = 0
    raw: bool = False

    @classmethod
    def single(
        cls, instruction: str, input: str = "", output: str | None = None, *, system: str = "", row: int = 0
    ) -> Example:
        """An example of one turn."""
        return cls((Turn(instruction, input, output),), system, row)

    @classmethod
    def text(cls, text: str, *, row: int = 0) -> Example:
        """Plain text to train on as it stands."""
        return cls((Turn("", "", text),), row=row, raw=True)

    @classmethod
    def from_messages(cls, messages: Sequence[Mapping[str, str]], *, row: int = 0) -> Example:
        """A conversation in chat form: an optional system message, then user and assistant in turn.

        The last turn may lack its answer (that is what serving asks for). Raises BadMessages with the number of
        the first message at fault.
        """
        if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
            raise BadMessages(f"messages is {type_name(messages)}, not a list of {{role, content}}")
        if not messages:
            raise BadMessages("messages is empty; it needs at least one message from the user")
        said = [_role_and_content(message, number) for number, message in enumerate(messages, 1)]
        system = said.pop(0)[1] if said[0][0] == "system" else ""
        if not said:
            raise BadMessages("there is only a system message; a message from the user must follow it")
        return cls(_turns(said, first=len(messages) - len(said) + 1), system, row)

    def key(self) -> str:
        """A hash of the content (not of the row number): equal for equal examples, on every machine."""
        turns = [(turn.instruction, turn.input, turn.output) for turn in self.turns]
        said = (self.system, turns, "raw") if self.raw else (self.system, turns)
        return hashlib.blake2b(json.dumps(said).encode("ascii"), digest_size=16).hexdigest()


def text_problem(value: object) -> str | None:
    """Why `value` can't be a text, or None where it can: not a string, half a surrogate pair, or a NUL."""
    if not isinstance(value, str):
        return f"is {type_name(value)}, not text"
    if found := UNWRITABLE.search(value):
        what = "a NUL character" if found[0] == "\x00" else "half a character (a lone surrogate)"
        return f"holds {what}, \\u{ord(found[0]):04x}, at position {found.start() + 1}"
    return None


def _role_and_content(message: Mapping[str, str], number: int) -> tuple[str, str]:
    if not isinstance(message, Mapping):
        raise BadMessages(f"message {number} is {type_name(message)}, not an object with role and content")
    for field in ("role", "content"):
        if field not in message:
            raise BadMessages(f"message {number} has no '{field}' (found: {names(message)})")
    role, content = message["role"], _joined_parts(message["content"], number)
    for field, text in (("role", role), ("content", content)):
        if problem := text_problem(text):
            raise BadMessages(f"message {number}: '{field}' {problem}")
    if role not in ROLES:
        raise BadMessages(f"message {number} has the role {role[:40]!r}; known are {', '.join(ROLES)}")
    return str(role), str(content)


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


def _turns(said: list[tuple[str, str]], first: int) -> tuple[Turn, ...]:
    """Pair user and assistant messages; `first` is the number that the first of them has for people."""
    turns: list[Turn] = []
    for index, (role, content) in enumerate(said):
        number = first + index
        if role == "system":
            raise BadMessages(f"message {number} is from the system; only the first message may be")
        expected = ROLES[1 + index % 2]
        if role != expected:
            before = f"it follows another message from the {role}" if index else "a conversation begins with the user"
            raise BadMessages(f"message {number} is from the {role} where the {expected} was expected: {before}")
        if role == "assistant":
            turns[-1] = Turn(turns[-1].instruction, "", content)
        elif content.strip():
            turns.append(Turn(content))
        else:
            raise BadMessages(f"message {number} (user) is blank")
    return tuple(turns)
