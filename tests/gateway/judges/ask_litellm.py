"""LiteLLM's client against a gateway. It runs in an environment of its own (clients.txt) and prints JSON:

python ask_litellm.py URL MODEL [KEY]
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it fetches prices as it is imported

import litellm

litellm.suppress_debug_info = True
TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me about the alpaca."}]


def error_of(**fields: Any) -> dict[str, Any]:
    """What the client raises."""
    try:
        answer = litellm.completion(**fields)
        if fields.get("stream"):
            list(answer)
    except litellm.exceptions.APIError as error:
        raise SystemExit(f"no error of its own for this: {error!r}") from None
    except Exception as error:
        classes = [kind.__name__ for kind in type(error).__mro__]
        return {"classes": classes, "status": getattr(error, "status_code", None), "says": str(error)}
    raise SystemExit("it answered what should be refused")


def main(url: str, name: str, key: str = "none") -> None:
    common: dict[str, Any] = {
        "model": f"openai/{name}", "api_base": f"{url}/v1", "api_key": key, "messages": TALK, "max_tokens": 12,
        "temperature": 0, "num_retries": 0, "max_retries": 0,
    }  # fmt: skip
    whole = litellm.completion(**common)
    chunks = list(litellm.completion(**common, stream=True, stream_options={"include_usage": True}))
    hosted = litellm.completion(**{**common, "model": f"hosted_vllm/{name}"})
    told = {
        "whole": whole.choices[0].message.content,
        "reason": whole.choices[0].finish_reason,
        "tokens": whole.usage.completion_tokens,
        "pieces": [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices],
        "streamed_tokens": [chunk.usage.completion_tokens for chunk in chunks if getattr(chunk, "usage", None)],
        "hosted": hosted.choices[0].message.content,
        "errors": {
            "model": error_of(**{**common, "model": "openai/no-such-model"}),
            "model, streamed": error_of(**{**common, "model": "openai/no-such-model", "stream": True}),
            "field": error_of(**common, top_p=7),
            "length": error_of(**{**common, "messages": [{"role": "user", "content": "hay " * 2000}]}),
        },
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
