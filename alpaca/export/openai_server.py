"""An export asked over HTTP, of any server with OpenAI's routes: vLLM, llama.cpp's, Ollama's."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from alpaca.errors import CheckUnavailable
from alpaca.export.agreement import Reply, Said
from alpaca.export.proof import Answered
from alpaca.words import one_line, shown_url

TOGETHER = 4  # requests at the same time
SECONDS = 300.0  # that an answer may take


class OpenAIServer:
    """Asks the model `model` of the server at `url` (with or without the /v1 at its end)."""

    def __init__(self, url: str, model: str | None = None, name: str | None = None, key: str | None = None) -> None:
        """`model`: None takes the only one that the server lists. Raises CheckUnavailable where nobody answers, or the
        URL or the key can't be one."""
        import httpx

        root = url.rstrip("/").removesuffix("/v1")
        self._where = shown_url(root)
        if not (key or "").isascii() or not (key or "").isprintable():
            raise CheckUnavailable("--api_key has characters that no key has: letters, digits and signs of ASCII do")
        try:
            self._client = httpx.Client(
                base_url=f"{root}/v1/", timeout=SECONDS, headers={"Authorization": f"Bearer {key}"} if key else None
            )
        except httpx.InvalidURL as error:
            raise CheckUnavailable(f"--url is {one_line(url)!r}: {error}; write http://localhost:8000") from None
        self.name = name or self._where
        self.model = model or self._only_model()

    def chat(self, asked: Sequence[Answered]) -> list[Reply]:
        def body(ours: Answered) -> dict[str, Any]:
            return {"messages": ours.messages, "logprobs": True, "top_logprobs": 1}

        return self._ask("chat/completions", asked, body)

    def complete(self, asked: Sequence[Answered]) -> list[Reply]:
        return self._ask("completions", asked, lambda ours: {"prompt": ours.prompt, "logprobs": 1})

    def _ask(self, route: str, asked: Sequence[Answered], body: Callable[[Answered], dict[str, Any]]) -> list[Reply]:
        def one(ours: Answered) -> Reply:
            greedy = {"model": self.model, "max_tokens": ours.most, "temperature": 0, "return_token_ids": True}
            return self._read(route, self._send(route, greedy | body(ours)))

        with ThreadPoolExecutor(TOGETHER) as threads:
            return list(threads.map(one, asked))

    def _send(self, route: str, body: dict[str, Any] | None) -> dict[str, Any]:
        import httpx

        try:
            answer = self._client.get(route) if body is None else self._client.post(route, json=body)
        except httpx.HTTPError as error:
            raise CheckUnavailable(f"{self._where} does not answer: {type(error).__name__}: {error}") from None
        if answer.status_code != 200:
            said = one_line(answer.text)
            raise CheckUnavailable(f"{self._where}/v1/{route} answered {answer.status_code}: {said}")
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise CheckUnavailable(f"{self._where}/v1/{route} answered no JSON object: {one_line(answer.text)}")
        return found

    def _read(self, route: str, answer: dict[str, Any]) -> Reply:
        try:
            return _reply(answer)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise CheckUnavailable(
                f"{self._where}/v1/{route} answered what is no choice of OpenAI's ({type(error).__name__}: {error}): "
                f"{one_line(str(answer))}"
            ) from None

    def _only_model(self) -> str:
        data = self._send("models", None).get("data")
        listed = [str(model.get("id")) for model in data if isinstance(model, dict)] if isinstance(data, list) else []
        if len(listed) != 1:
            there = ", ".join(listed[:10]) or "none"
            raise CheckUnavailable(f"{self._where} serves {len(listed)} models ({there}): say which with --model")
        return listed[0]


def wait_until_ready(url: str, alive: Callable[[], bool], seconds: float, log: Callable[[], str]) -> None:
    """Wait for a server that was started to answer. Raises CheckUnavailable with the end of its log where it ends, or
    does not answer in time."""
    import httpx

    started = time.monotonic()
    while time.monotonic() - started < seconds:
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        if not alive():
            raise CheckUnavailable(f"the server ended as it started: {log()}")
        time.sleep(0.2)
    raise CheckUnavailable(f"the server did not answer within {seconds:g} s: {log()}")


def _reply(answer: dict[str, Any]) -> Reply:
    """A choice with its tokens, in the several ways in which servers list them."""
    choice = answer["choices"][0]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    listed = choice.get("logprobs") or {}
    tokens = choice.get("token_ids")
    said = [Said(entry["token"], entry.get("id"), entry["logprob"]) for entry in listed.get("content") or []]
    if not said and listed.get("token_logprobs"):
        pairs = zip(listed["tokens"], listed["token_logprobs"], strict=True)
        said = [Said(piece, None, logprob) for piece, logprob in pairs]
    if tokens is not None and len(tokens) == len(said):
        said = [replace(one, token=token) for one, token in zip(said, tokens, strict=True)]
    return Reply(text or "", choice.get("finish_reason") == "stop", tokens, tuple(said))
