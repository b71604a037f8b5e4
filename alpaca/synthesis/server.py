"""A model on any server with OpenAI's routes, asked by OpenAI's own client.

A question is asked again where that may help: on 429, 408, 409 and 5xx, where the connection breaks, where the answer
takes too long as a whole, and where it is no answer of OpenAI's form. The client's own repetitions are off, because
they cover only the first of these.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from alpaca.errors import BadSetting, ModelRefused, QuestionFailed
from alpaca.progress import Say
from alpaca.synthesis.patience import pause_before
from alpaca.synthesis.question import Question, Reply
from alpaca.words import one_line, shown_url

KEY = "OPENAI_API_KEY"
TRIES = 8
SECONDS = 300.0  # that one answer may take, from the first byte sent to the last one read
AGAIN = {408, 409, 429}  # and all from 500 on
NEVER = {401, 403, 404}  # the key or the model: no other question would fare better
OUT_OF_MONEY = {"insufficient_quota", "billing_hard_limit_reached"}
THOUGHTS = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)  # what reasoning models say to themselves first
LIMIT, NEWER_LIMIT = "max_tokens", "max_completion_tokens"
BYTES_PER_TOKEN = 4  # where a server counts no tokens


class ServerModel:
    """The model `name` at `url`. A server that has only one need not be told which."""

    is_small = False  # nobody tells, and who runs a server has chosen

    def __init__(
        self, url: str, name: str | None = None, *, say: Say, tries: int = TRIES, seconds: float = SECONDS
    ) -> None:
        """Raises BadSetting for a URL or key that can't be one, ModelRefused where nobody answers for a model."""
        from openai import AsyncOpenAI

        key = os.environ.get(KEY, "")
        if not key.isascii() or not key.isprintable():
            raise BadSetting(f"{KEY} has characters that no key has: letters, digits and signs of ASCII do")
        self._url = _base_url(url)
        self._where = shown_url(self._url)
        self._say, self._tries, self._seconds = say, tries, seconds
        self._client = AsyncOpenAI(base_url=self._url, api_key=key or "none", max_retries=0, timeout=seconds)
        self._left_out: set[str] = set()
        self._limit = LIMIT
        self._told: set[str] = set()
        self.name = name or self._only_model()

    async def ask(self, question: Question) -> Reply:
        last = ""
        for attempt in range(1, self._tries + 1):
            try:
                async with asyncio.timeout(self._seconds):
                    answer = await self._client.chat.completions.create(**self._fields(question))
                return _reply(answer, question)
            except Exception as error:
                last, headers = self._judge(error)
            if last not in self._told:
                self._told.add(last)
                self._say(f"{self._where}: {last}; such questions are asked again, {self._tries} times in all")
            if attempt < self._tries:
                await asyncio.sleep(pause_before(attempt, headers))
        raise QuestionFailed(f"{self._where} gave no answer in {self._tries} tries; at last: {last}")

    def described(self) -> dict[str, Any]:
        return {"name": self.name, "server": self._where}

    async def close(self) -> None:
        await self._client.close()

    def _fields(self, question: Question) -> dict[str, Any]:
        fields = {
            "model": self.name,
            "messages": question.as_messages(),
            self._limit: question.max_tokens,
            "temperature": question.temperature,
            "top_p": question.top_p,
            "seed": question.seed,
        }
        return {name: value for name, value in fields.items() if value is not None and name not in self._left_out}

    def _judge(self, error: Exception) -> tuple[str, Any]:
        """What went wrong and the headers that came with it, where asking again may help; else raises."""
        import openai

        if isinstance(error, openai.APIStatusError):
            said = one_line(f"HTTP {error.status_code}: {error.message}")
            if error.status_code in NEVER:
                hint = f"; the key is taken from {KEY}" if error.status_code in (401, 403) else ""
                raise ModelRefused(f"{self._where} refuses model {self.name!r}: {said}{hint}") from None
            if error.code in OUT_OF_MONEY:
                raise ModelRefused(f"{self._where} says that the account is used up: {said}") from None
            if error.status_code in AGAIN or error.status_code >= 500:
                return said, error.response.headers
            if self._adapt(str(error.param or ""), error.message):
                return said, {"retry-after": "0"}
            raise QuestionFailed(f"{self._where} refuses the question: {said}") from None
        if isinstance(error, TimeoutError | openai.APITimeoutError):
            return f"it took longer than {self._seconds:g} s", None
        if isinstance(error, openai.APIConnectionError):
            return one_line(f"the connection failed: {error.__cause__ or error}"), None
        if isinstance(error, ValueError | openai.APIResponseValidationError):
            return one_line(f"what came is no answer of OpenAI's form: {error}"), None
        raise error

    def _adapt(self, field: str, message: str) -> bool:
        """Whether the question can be asked without what this model does not take: newer models of OpenAI's have
        another name for the limit and choose the temperature themselves. What is changed is said once."""
        if NEWER_LIMIT in message:
            self._limit = NEWER_LIMIT
            return True
        if field in ("temperature", "top_p", "seed") and field not in self._left_out:
            self._left_out.add(field)
            self._say(f"{self.name} takes no {field}: its own is used")
            return True
        return field in self._left_out  # another question met it at the same time

    def _only_model(self) -> str:
        """The name of the only model there. Raises ModelRefused where there are none or several, or nobody answers."""
        import openai

        try:
            with openai.OpenAI(base_url=self._url, api_key=self._client.api_key, max_retries=2, timeout=30) as client:
                listed = [model.id for model in client.models.list().data or []]
        except (openai.OpenAIError, ValueError, AttributeError) as error:
            raise ModelRefused(f"{self._where} does not list its models: {one_line(str(error))}") from None
        if len(listed) != 1:
            there = ", ".join(listed[:10]) or "none"
            raise ModelRefused(f"{self._where} serves {len(listed)} models ({there}): say which with --model")
        return listed[0]


def _base_url(url: str) -> str:
    """The URL that routes are appended to: /v1 is added where it has no path of its own."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise BadSetting(f"--url is {one_line(url)!r}: write it as http://localhost:8000 or https://…/v1")
    return url.rstrip("/") if parts.path.strip("/") else f"{url.rstrip('/')}/v1"


def _reply(answer: Any, question: Question) -> Reply:
    """Raises ValueError for what is no answer of OpenAI's form: its client hands over whatever came."""
    choices = getattr(answer, "choices", None)
    if not isinstance(choices, list) or not choices:
        raise ValueError(f"it has no choices: {str(answer)[:80]}")
    message = getattr(choices[0], "message", None)
    text = getattr(message, "content", None)
    if message is None or not isinstance(text, str | None):
        raise ValueError("its first choice has no message with a text")
    said = THOUGHTS.sub("", text or "", count=1) if (text or "").lstrip().startswith("<think>") else text or ""
    usage = getattr(answer, "usage", None)

    def count(name: str, estimate: Callable[[], int]) -> int:
        value = getattr(usage, name, None)
        return value if isinstance(value, int) and value >= 0 else estimate()

    return Reply(
        said,
        getattr(choices[0], "finish_reason", None) != "length",
        count("prompt_tokens", lambda: question.size // BYTES_PER_TOKEN),
        count("completion_tokens", lambda: len((text or "").encode("utf-8", "replace")) // BYTES_PER_TOKEN),
    )
