"""Answers in OpenAI's form."""

from __future__ import annotations

import json
import secrets
from typing import Any

from alpaca.gateway.call import Call, Piece
from alpaca.gateway.refusals import Refused
from alpaca.gateway.served import Model

OWNER = "alpaca"
DONE = b"data: [DONE]\n\n"
_json = json.JSONEncoder(ensure_ascii=False).encode


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
        self._head_text = _json(chunk_head)[:-1]
        self._key = "delta" if chat else "text"
        self._no_usage = ', "usage": null' if call.asked.include_usage else ""
        self._begun: set[int] = set()

    def whole(self, texts: list[str]) -> dict[str, Any]:
        """The whole answer, or answers."""
        choices = [
            {"index": index, **self._said(text), "finish_reason": self._call.finish(index), "logprobs": None}
            for index, text in enumerate(texts)
        ]
        return {**self._head, "choices": choices, "usage": self._call.usage, "metrics": self._call.figures}

    def _said(self, text: str) -> dict[str, Any]:
        text = text.encode("utf-8", "replace").decode()  # half a character can't be sent
        return {"message": {"role": "assistant", "content": text, "refusal": None}} if self._chat else {"text": text}

    # --- streamed ---
    def pieces(self, pieces: list[Piece]) -> bytes:
        """Chunks with texts of answers, one for each. A chat's answer begins with one more, which says who speaks."""
        chunks = []
        for index, text in pieces:
            if index not in self._begun:
                self._begun.add(index)
                if self._chat:
                    chunks.append(self._chunk(index, '{"role": "assistant", "content": ""}'))
            if text:
                said = _json(text)
                chunks.append(self._chunk(index, f'{{"content": {said}}}' if self._chat else said))
        return "".join(chunks).encode("utf-8", "replace")

    def last(self, index: int) -> bytes:
        end = self._chunk(index, "{}" if self._chat else '""', _json(self._call.finish(index)))
        return end.encode("utf-8", "replace")

    def usage(self) -> bytes:
        """The last chunk, for those who asked for it."""
        rest = _json({"choices": [], "usage": self._call.usage, "metrics": self._call.figures})
        return f"data: {self._head_text}, {rest[1:]}\n\n".encode("utf-8", "replace")

    def _chunk(self, index: int, said: str, finish: str = "null") -> str:
        """One event. There are many of them, so that only what differs is made into JSON: `said` and `finish` are."""
        return (
            f'data: {self._head_text}, "choices": [{{"index": {index}, "{self._key}": {said}, '
            f'"finish_reason": {finish}, "logprobs": null}}]{self._no_usage}}}\n\n'
        )


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
