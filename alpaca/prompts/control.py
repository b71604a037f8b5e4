"""Control tokens: spellings that steer the model, and stay plain text wherever a user wrote them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

TAG = re.compile(r"</?(\w+)>")


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """Spelling and id of every control token: a special one, or one that the chat template uses."""
    written = json.dumps(tokenizer.chat_template or "", ensure_ascii=False)
    added = tokenizer.added_tokens_decoder.items()
    control = {token.content: number for number, token in added if token.special or token.content in written}
    control.update(zip(map(str, tokenizer.all_special_tokens), tokenizer.all_special_ids, strict=True))
    return {spelling: number for spelling, number in control.items() if spelling.strip()}


def control_tokens_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Matches the spelling of a control token, the longest first."""
    return any_of(control_tokens(tokenizer))


def answer_tags(tokenizer: Any) -> set[str]:
    """Control tokens that belong into an answer, such as <think> and </think>: tags in pairs, and not special.

    A chat template looks for them in the answers of a conversation, and a model is trained to write them.
    """
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if not token.special}
    tags = {tag: found[1] for tag in added if (found := TAG.fullmatch(tag))}
    return {tag for tag, name in tags.items() if {f"<{name}>", f"</{name}>"} <= tags.keys()}


def any_of(spellings: Iterable[str]) -> re.Pattern[str]:
    """Matches any of them, the longest first; nothing where there is none."""
    longest_first = sorted(spellings, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
