"""Tokens that the model has no embedding for: an id beyond its rows would end the process that looks it up."""

from __future__ import annotations

import json
from typing import Any

from alpaca.errors import BadBase


def drop_tokens_beyond(tokenizer: Any, rows: int, where: str) -> list[str]:
    """Take the added tokens with an id from `rows` on out of the tokenizer, and list them: they become plain text.

    Raises BadBase where other tokens lie there: then tokenizer and weights are not of one release. `where` is what
    messages call the base.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or max(backend.get_vocab(with_added_tokens=True).values(), default=0) < rows:
        return []
    added = {token.content for i, token in tokenizer.added_tokens_decoder.items() if i >= rows}
    own = [token for token, i in backend.get_vocab(with_added_tokens=False).items() if i >= rows and token not in added]
    if own:
        raise BadBase(
            f"{where}: the tokenizer has {len(own):,} tokens for which the model's {rows:,} embeddings have no row, "
            f"{min(own)!r} for one: tokenizer and weights are not of one release. Take both from the same one"
        )
    try:
        smaller = type(backend).from_str(_without(backend.to_str(), added))
    except Exception as error:  # the library raises bare Exception, such as for a merge into a token that is gone
        raise BadBase(
            f"{where}: {len(added)} added tokens lie beyond the model's {rows:,} embeddings ({min(added)!r} for one), "
            f"and the tokenizer doesn't work without them ({error}). Take it from the release of the weights"
        ) from None
    tokenizer._tokenizer = smaller
    for attribute in list(tokenizer.SPECIAL_TOKENS_ATTRIBUTES):
        if str(getattr(tokenizer, attribute) or "") in added:
            setattr(tokenizer, attribute, None)
    tokenizer.extra_special_tokens = [token for token in tokenizer.extra_special_tokens if str(token) not in added]
    return sorted(added)


def _without(text: str, tokens: set[str]) -> str:
    """A tokenizer.json without some of its added tokens, which its vocabulary may list once more."""
    parsed = json.loads(text)
    parsed["added_tokens"] = [token for token in parsed["added_tokens"] if token["content"] not in tokens]
    vocab = parsed["model"]["vocab"]
    if isinstance(vocab, dict):
        parsed["model"]["vocab"] = {token: i for token, i in vocab.items() if token not in tokens}
    else:  # pieces with their scores: a piece's place is its id
        parsed["model"]["vocab"] = [piece for piece in vocab if piece[0] not in tokens]
    return json.dumps(parsed, ensure_ascii=False)
