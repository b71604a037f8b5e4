"""vLLM as a worker (see protocol.py): bf16, up to 32 answers at once, with or without room for adapters."""

from __future__ import annotations

from typing import Any

from benchmarks.rivals.protocol import Ask, Question, Ready, work

CONTEXT = 1024  # tokens of a prompt and its answer


def open_vllm(settings: dict[str, str]) -> tuple[Ready, Ask]:
    """`settings`: "base", a folder; "adapters", how many of rank 16 answer together (0: a vLLM without LoRA, which it
    compiles)."""
    import vllm
    from vllm.lora.request import LoRARequest

    count = int(settings["adapters"])
    room: dict[str, Any] = (
        {"enable_lora": True, "max_loras": count, "max_lora_rank": 16, "max_cpu_loras": count} if count else {}
    )
    llm = vllm.LLM(model=settings["base"], dtype="bfloat16", max_model_len=CONTEXT, max_num_seqs=32, **room)
    known: dict[str, Any] = {}

    def lora(adapter: str | None) -> Any:
        if adapter is None:
            return None
        return known.setdefault(adapter, LoRARequest(adapter, len(known) + 1, adapter))

    def ask(question: Question) -> list[str]:
        settings = vllm.SamplingParams(temperature=0.0, max_tokens=question["tokens"], ignore_eos=True)
        prompts = [{"prompt_token_ids": ids} for ids in question["prompts"]]
        adapters = [lora(adapter) for adapter in question["adapters"]]
        outputs = llm.generate(prompts, settings, lora_request=adapters if count else None, use_tqdm=False)
        return [output.outputs[0].text for output in outputs]

    return {"version": f"vLLM {vllm.__version__}"}, ask


if __name__ == "__main__":
    work(open_vllm)
