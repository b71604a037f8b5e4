"""llama.cpp as a worker (see protocol.py), through the wheel xllamacpp: 16 answers at once, two threads."""

from __future__ import annotations

import os
from typing import Any

from benchmarks.rivals.protocol import Ask, Question, Ready, work

PLACES, CONTEXT = 16, 1024  # answers at once; tokens of a prompt and its answer


def open_llama(settings: dict[str, str]) -> tuple[Ready, Ask]:
    """`settings`: "model", a GGUF file; "flash", 1 or 0."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["model"]
    params.n_parallel, params.n_ctx = PLACES, PLACES * CONTEXT
    params.cont_batching = True
    kind = xllamacpp.llama_flash_attn_type
    params.flash_attn_type = (
        kind.LLAMA_FLASH_ATTN_TYPE_ENABLED if int(settings["flash"]) else kind.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count()
    server = xllamacpp.Server(params)

    def ask(question: Question) -> list[str]:
        answer: Any = server.handle_completions(
            {
                "prompt": question["prompts"],
                "max_tokens": question["tokens"],
                "n_predict": question["tokens"],
                "ignore_eos": True,
                "temperature": 0.0,
                "samplers": ["top_k"],
                "top_k": 1,
            }
        )
        return [choice["text"] for choice in sorted(answer["choices"], key=lambda choice: choice["index"])]

    return {"version": f"xllamacpp {xllamacpp.__version__} ({xllamacpp.get_system_info()})"}, ask


if __name__ == "__main__":
    work(open_llama)
