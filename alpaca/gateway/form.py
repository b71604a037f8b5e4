"""Answers in OpenAI's form."""

from __future__ import annotations

import json
import secrets
from typing import Any

from alpaca.gateway.call import Call
from alpaca.gateway.refusals import Refused
from alpaca.gateway.served import Model

OWNER = "alpaca"
FIGURES = ("seed", "queue_time", "time_to_first_token", "tokens_per_second", "batch_size")
DONE = b"data: [DONE]\n\n"


class Form:
    """The bodies of one answer, whole or in chunks."""

    def __init__(self, call: Call) -> None:
        chat = call.asked.chat
        self._call = call
        self._chat = chat
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
            "object": "chat.completion" if chat else "text_completion",
            "created": call.created,
            "model": call.asked.model,
            "system_fingerprint": call.model.fingerprint or None,
        }
        chunk_head = {**self._head, "object": "chat.completion.chunk"} if chat else self._head
        self._start = json.dumps(chunk_head, ensure_ascii=False)[:-1]

    def whole(self, texts: list[str]) -> dict[str, Any]:
        """The whole answer, or answers."""
        choices = [
            {"index": index, **self._said(text), "finish_reason": self._call.finish(index), "logprobs": None}
            for index, text in enumerate(texts)
        ]
        return {**self._head, "choices": choices, "usage": self._call.usage, "metrics": self.figures}

    def _said(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}} if self._chat else {"text": text}

    # --- streamed ---
    def first(self, index: int) -> bytes:
        """A chat's first chunk says who speaks; a completion has none."""
        return self._chunk(index, {"role": "assistant", "content": ""}) if self._chat else b""

    def piece(self, index: int, text: str) -> bytes:
        return self._chunk(index, {"content": text} if self._chat else text)

    def last(self, index: int) -> bytes:
        return self._chunk(index, {} if self._chat else "", self._call.finish(index))

    def usage(self) -> bytes:
        """The last chunk, for those who asked for it."""
        rest: dict[str, Any] = {"choices": [], "usage": self._call.usage, "metrics": self.figures}
        return self._event(json.dumps(rest, ensure_ascii=False)[1:-1])

    def _chunk(self, index: int, said: Any, finish: str | None = None) -> bytes:
        key = "delta" if self._chat else "text"
        choice = json.dumps({"index": index, key: said, "finish_reason": finish, "logprobs": None}, ensure_ascii=False)
        usage = ', "usage": null' if self._call.asked.include_usage else ""
        return self._event(f'"choices": [{choice}]{usage}')

    def _event(self, rest: str) -> bytes:
        return f"data: {self._start}, {rest}}}\n\n".encode("utf-8", "replace")

    @property
    def figures(self) -> dict[str, Any]:
        """What the server says of this answer, beside OpenAI's own fields."""
        return {name: self._call.metrics[name] for name in FIGURES if name in self._call.metrics}


def error_event(refused: Refused) -> bytes:
    """How a stream that has begun ends badly: clients raise it, and no [DONE] follows."""
    return f"data: {json.dumps(refused.body)}\n\n".encode()


def model_card(model: Model) -> dict[str, Any]:
    """An entry of /v1/models, with `root`, `parent` and `max_model_len` as vLLM has them, and `settings`: the fields
    that the model can honour."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": OWNER,
        "root": model.root,
        "parent": model.parent,
        "max_model_len": model.context,
        "settings": model.settings,
    }
