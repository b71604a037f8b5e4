"""Requests as large as they may be, and larger: refused with a code, while others are answered."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from alpaca.cogserver.schema import declared_concurrency
from alpaca.cogserver.server import Server
from alpaca.errors import BadTemplate
from alpaca.prompts.alpaca import AlpacaTemplate
from alpaca.prompts.template import MAX_TEXT_CHARS
from tests.conftest import ROOT
from tests.server.over_http import Start, post_together

pytestmark = pytest.mark.server
SMALL = {"prompt": "hay", "max_tokens": 4, "min_tokens": 4}
LARGE = "hay and grass " * 1_000_000
CONTROL = "<|im_start|>"
FULL = MAX_TEXT_CHARS - 100
SAID = {"role": "user", "content": "hay"}


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"prompt": LARGE}, "E1003 OutOfRange"),
        ({"prompt": "hay", "input": LARGE}, "E1003 OutOfRange"),
        ({"prompt": "hay", "system_prompt": LARGE}, "E1003 OutOfRange"),
        ({"prompt": "hay", "prompt_template": LARGE}, "E1003 OutOfRange"),
        ({"prompt": "hay", "prompt_template": "a" * 300}, "E2101 TemplateNotFound"),
        ({"prompt": "hay", "prompt_template": "a" * FULL}, "E2101 TemplateNotFound"),
        ({"prompt": "hay", "prompt_template": "~nobody-of-that-name"}, "E2101 TemplateNotFound"),
        ({"prompt": "hay", "prompt_template": "{prompt}" + LARGE}, "E1003 OutOfRange"),
        ({"prompt": "hay" * 1000, "prompt_template": "{prompt}" * 100_000}, "E1003 OutOfRange: prompt_template"),
        ({"prompt": "hay", "adapter": LARGE}, "E1003 OutOfRange"),
        ({"prompt": "hay", "stop_sequences": LARGE}, "E1003 OutOfRange"),
        ({"prompt": "hay", "stop_sequences": "[" * 60_000}, "E1003 OutOfRange: stop_sequences: each entry"),
        ({"prompt": "hay", "stop_sequences": "[" + '"a",' * 1_000_000 + '"a"]'}, "E1003 OutOfRange"),
        ({"messages": [{**SAID, "content": LARGE}]}, "E1003 OutOfRange"),
        ({"messages": [SAID] * 100_000}, "E1003 OutOfRange"),
        ({"messages": [{**SAID, "role": LARGE}]}, "E1004 BadMessages"),
        ({"messages": [{str(number): 1 for number in range(100_000)}]}, "99,970 more"),
        ({"prompt": ("hay and grass " * FULL)[:FULL]}, "E1002 PromptTooLong"),
        ({"prompt": CONTROL * (FULL // len(CONTROL))}, "E1002 PromptTooLong"),
        ({"prompt": "hay", "prompt_template": "{prompt}" + CONTROL * (FULL // 12 - 10)}, "E1002 PromptTooLong"),
    ],
    ids=[
        "prompt", "input", "system_prompt", "template's size", "template's name", "template's long name",
        "somebody's home", "template", "template filled", "adapter", "stop_sequences", "brackets", "list",
        "message", "messages", "role", "keys", "tokens", "control tokens", "template's control tokens",
    ],
)  # fmt: skip
def test_a_large_request_is_refused_while_others_are_answered(
    served: Server, inputs: dict[str, Any], says: str
) -> None:
    with ThreadPoolExecutor(1) as pool:
        large = pool.submit(post_together, served, [inputs])
        answered = []
        while not answered or not large.done():
            answered += [response.json()["status"] for response in post_together(served, [SMALL])]
    (refused,) = large.result()
    assert refused.status_code == 200 and refused.json()["status"] == "failed"
    assert says in refused.json()["error"]
    assert len(refused.json()["error"]) < 3000
    assert set(answered) == {"succeeded"}


def test_a_conversation_full_of_control_tokens_is_refused(served: Server) -> None:
    roles = ["user", "assistant"] * 500
    messages = [{"role": role, "content": CONTROL * 80} for role in roles[:-1]]
    (refused,) = post_together(served, [{"messages": messages}])
    assert "E1002 PromptTooLong" in refused.json()["error"]


def test_a_template_says_the_instruction_a_few_times_at_most() -> None:
    """A stranger's adapter brings its template along: it must not make gigabytes of a prompt."""
    twice = "{instruction}\n\n{instruction}\n### Answer:\n"
    fields = {"prompt_input": "{instruction}{input}\n### Answer:\n", "response_split": "### Answer:"}
    AlpacaTemplate("twice", {**fields, "prompt_no_input": twice})
    with pytest.raises(BadTemplate, match=r"prompt_no_input.*more than 4 times"):
        AlpacaTemplate("often", {**fields, "prompt_no_input": "{instruction}" * 3 + twice})


def test_ids_that_cost_cog_its_places_turn_the_server_unhealthy(start_server: Start, tiny_base: Path) -> None:
    """A request whose id is no folder's name loses its place for good; a server without any must be restarted."""
    server = start_server(tiny_base)
    for number in range(declared_concurrency(ROOT / "predict.py", "Runner")):
        body = {"id": f"{number:03}" * 100, "input": {"prompt": "hay", "max_tokens": 2}}
        httpx.post(f"{server.url}/predictions", json=body, timeout=60)
    assert server.health()["status"] == "BUSY"
    deadline = time.monotonic() + 120
    while server.health()["status"] == "BUSY":
        assert time.monotonic() < deadline
        time.sleep(1)
    assert server.health()["status"] == "UNHEALTHY"
    server.stop()
