"""LangChain's client against a gateway. It runs in an environment of its own (clients.txt) and prints JSON:

python ask_langchain.py URL MODEL [KEY]
"""

from __future__ import annotations

import json
import sys
from typing import Any

import openai
from langchain_core.messages import AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI


def model(url: str, name: str, key: str, **fields: Any) -> ChatOpenAI:
    return ChatOpenAI(base_url=f"{url}/v1", model=name, api_key=key, max_retries=0, temperature=0, **fields)


def error_of(chat: ChatOpenAI, text: str = "hay", stream: bool = False) -> dict[str, Any]:
    """What the client raises."""
    try:
        if stream:
            list(chat.stream(text))
        else:
            chat.invoke(text)
    except openai.APIStatusError as error:
        classes = [kind.__name__ for kind in type(error).__mro__]
        return {"classes": classes, "status": error.status_code, "says": str(error)}
    raise SystemExit("it answered what should be refused")


def main(url: str, name: str, key: str = "none") -> None:
    chat = model(url, name, key, max_tokens=12)
    talk = [SystemMessage("Be brief."), HumanMessage("Tell me about the alpaca.")]
    whole = chat.invoke(talk)
    chunks: list[AIMessageChunk] = list(model(url, name, key, max_tokens=12, stream_usage=True).stream(talk))
    chain = ChatPromptTemplate.from_messages([("user", "{what}")]) | chat
    told = {
        "whole": whole.content,
        "reason": whole.response_metadata["finish_reason"],
        "tokens": whole.usage_metadata["output_tokens"] if whole.usage_metadata else None,
        "pieces": [chunk.content for chunk in chunks],
        "streamed_tokens": [c.usage_metadata["output_tokens"] for c in chunks if c.usage_metadata],
        "batch": [answer.content for answer in chain.batch([{"what": "hay"}, {"what": "fleece"}])],
        "errors": {
            "model": error_of(model(url, "no-such-model", key)),
            "model, streamed": error_of(model(url, "no-such-model", key), stream=True),
            "field": error_of(model(url, name, key, top_p=7)),
            "length": error_of(chat, "hay " * 2000),
        },
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
