"""Where a turn ends in a chat template: found once, by rendering a conversation whose texts are known words."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from alpaca.errors import BadMessages, BadTemplate

Message = dict[str, Any]
QUESTION, ANSWER, FURTHER = "alpacaquestion", "alpacaanswer", "alpacafurther"


@dataclass(frozen=True)
class TurnEnd:
    """What a template writes around an answer.

    `before`: from the end of a question to where the model begins to write. `token`: the control token that ends the
    answer, empty where that is EOS alone. `after`: from the answer to the end of the conversation. `stop_strings`:
    plain text that follows an answer.
    """

    before: str = ""
    token: str = ""
    after: str = ""
    stop_strings: tuple[str, ...] = ()


def find_turn_end(render: Callable[[list[Message], bool], str], control: re.Pattern[str], bos: str) -> TurnEnd:
    """Ask the template, by way of `render(messages, add_generation_prompt)`."""
    asked, said, more = (
        {"role": role, "content": text} for role, text in (("user", QUESTION), ("assistant", ANSWER), ("user", FURTHER))
    )
    try:
        prompt, whole = render([asked], True), render([asked, said], False)
    except (BadMessages, BadTemplate):  # what is wrong is said with the row or the request that meets it
        return TurnEnd()
    before, after = _after(QUESTION, prompt), _after(ANSWER, whole)
    if found := control.search(after):
        text = after[: found.start()].rstrip()
        return TurnEnd(before, found[0], after, (text,) if text else ())
    try:
        between = _after(ANSWER, render([asked, said, more], True)).partition(FURTHER)[0]
    except (BadMessages, BadTemplate):
        between = ""
    found = control.match(between.lstrip())
    in_front = whole.partition(ANSWER)[0].removeprefix(prompt)
    if found and found[0] != bos and found[0] not in in_front:  # the mark of the next turn ends this one
        return TurnEnd(before, found[0], after)
    text = after.rstrip() or control.split(between)[0].rstrip()
    return TurnEnd(before, "", after, (text,) if text else ())


def _after(word: str, text: str) -> str:
    """What stands behind `word`; nothing where the template left it out."""
    return text.rpartition(word)[2] if word in text else ""
