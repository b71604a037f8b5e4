"""Control tokens: spellings that steer the model, and stay plain text wherever a user wrote them."""

from __future__ import annotations

import json
import re
from typing import Any


def control_tokens_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Matches the spelling of a control token, the longest first: a special one, or one that the chat template uses."""
    written = json.dumps(tokenizer.chat_template or "", ensure_ascii=False)
    added = tokenizer.added_tokens_decoder.values()
    control = {token.content for token in added if token.special or token.content in written}
    control.update(map(str, tokenizer.all_special_tokens))
    longest_first = sorted(filter(str.strip, control), key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
