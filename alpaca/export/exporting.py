"""The export itself: refused early, proved here, written aside, asked where it is, and kept only if it answers."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from alpaca.device import free_memory, pick_device
from alpaca.errors import BadSetting, ExportFailed, ExportRefused
from alpaca.export import gguf_lora, hf_folder, meta
from alpaca.export.base_gguf import planned, write_gguf
from alpaca.export.card import write_card
from alpaca.export.checking import check_all
from alpaca.export.gguf_lora import write_adapter
from alpaca.export.gguf_tensors import TYPES, architecture
from alpaca.export.here import prove
from alpaca.export.leaving import Leaving, leaving
from alpaca.export.ollama import write_modelfile
from alpaca.export.portable import portable
from alpaca.export.proof import Proof, save_proofs
from alpaca.export.room import check_room, place_for
from alpaca.export.vllm_folder import LOST, served_adapters, write_vllm
from alpaca.progress import Say
from alpaca.words import joined, size_text

MERGED, GGUF, GGUF_LORA, META, VLLM = WHAT = ("merged", "gguf", "gguf-lora", "meta", "vllm")
DTYPES = ("auto", "bf16", "fp32", "fp16")
BESIDE = 64 << 20  # bytes for tokenizer, configs and the proof


@dataclass(frozen=True)
class Order:
    """What is to be exported, and how."""

    what: str
    output_dir: Path
    base_model: str | None = None
    adapters: tuple[str, ...] = ()
    adapter_scale: float = 1.0
    prompt_template_name: str = ""
    dtype: str = "auto"
    """merged, meta: of the weights; auto is the base's."""
    outtype: str = ""
    """gguf: one of TYPES, by default Q8_0; gguf-lora: F32 or F16, by default F32."""
    serve_base: str = ""
    """vllm: what vLLM is to be started with; by default the base's folder."""
    gpus: int = 1
    """vllm: over how many GPUs the base is cut."""

    @property
    def kind(self) -> str:
        return self.outtype or ("F32" if self.what == GGUF_LORA else "Q8_0")


@dataclass(frozen=True)
class _Job:
    """How one kind of export is made. `n_bytes`: of what is written, with what lies beside it meanwhile."""

    models: list[Leaving]
    files: list[dict[str, str]]
    precision: str
    n_bytes: int
    write: Callable[[Path], list[str]]
    """Writes into a folder, and says what is worth knowing."""


def export(order: Order, say: Say) -> tuple[Path, list[Proof]]:
    """Make it. Nothing is left behind where it fails or is interrupted, and a folder that is there is not touched.

    Raises ExportRefused, ExportUnwritten, ExportFailed where it doesn't answer as here, and the errors of base and
    adapters.
    """
    target = order.output_dir
    if target.exists():
        raise ExportRefused(f"{target} is there already, and nothing is overwritten: move it away, or name another")
    _check_options(order)
    job = _jobs(order, say)
    _say_needs(job, target, say)
    with place_for(target) as folder:
        proofs = [
            prove(model, order.what, files, job.precision, say)
            for model, files in zip(job.models, job.files, strict=True)
        ]
        gc.collect()
        for note in job.write(folder):
            say(f"note: {note}")
        found = check_all(folder, proofs, say, base_model=str(job.models[0].base))
        if bad := [agreement for _, agreement in found if not agreement.good]:
            raise ExportFailed(f"{target} was not kept. {bad[0].tool}: {bad[0].verdict}")
        proofs = [
            dataclasses.replace(proof, checks=[agreement.record() for of, agreement in found if of is proof])
            for proof in proofs
        ]
        save_proofs(folder, proofs)
        write_card(job.models, proofs, folder)
    say(f"export: {target}")
    return target, proofs


def _check_options(order: Order) -> None:
    if order.what not in (VLLM, GGUF_LORA) and len(order.adapters) > 1:
        one = "+".join(f"{name}:0.5" for name in order.adapters)
        raise BadSetting(f"{order.what} makes one model: give one --adapter, or a composition such as {one}")
    if "" in order.adapters:
        raise BadSetting("--adapter is empty: name an adapter, or leave --adapter out for the base alone")
    known = {GGUF: TYPES, GGUF_LORA: gguf_lora.TYPES}.get(order.what)
    if known and order.kind not in known:
        kquant = "; llama-quantize makes K-quants (Q4_K_M, …) of an F16 or BF16 file" if order.what == GGUF else ""
        raise BadSetting(f"--outtype is {order.outtype!r}: {order.what} is written as {joined(known)}{kquant}")
    if order.gpus < 1:
        raise BadSetting(f"--tensor-parallel-size is {order.gpus}: a number from 1")


def _jobs(order: Order, say: Say) -> _Job:
    names = order.adapters or ("",)
    models = [leaving(order.base_model, name, order.adapter_scale, order.prompt_template_name, say) for name in names]
    if order.what in (VLLM, GGUF_LORA) and not all(model.strengths for model in models):
        raise BadSetting(f"{order.what} carries adapters: give --adapter (the base alone leaves as merged or gguf)")
    called = [model.name for model in models]
    if doubled := next((name for name in called if called.count(name) > 1), None):
        raise ExportRefused(f"two adapters would be called {doubled}: rename one of their folders")
    makers = {MERGED: _merged, GGUF: _gguf, GGUF_LORA: _gguf_lora, META: _meta, VLLM: _vllm}
    return makers[order.what](order, models)


def _merged(order: Order, models: list[Leaving]) -> _Job:
    model = models[0]

    def write(folder: Path) -> list[str]:
        hf_folder.write_folder(model, folder, order.dtype)
        return []

    precision = hf_folder.main_precision(model.weights, order.dtype)
    return _Job(models, [{"model": "."}], precision, hf_folder.size(model, order.dtype), write)


def _gguf(order: Order, models: list[Leaving]) -> _Job:
    model = models[0]
    name = f"{model.name}-{order.kind}.gguf"
    size = sum(stored.n_bytes for stored in planned(model, order.kind))

    def write(folder: Path) -> list[str]:
        from alpaca.export.questions import forty_questions

        write_gguf(model, folder / name, order.kind)
        asked = [[dict(said) for said in question.messages] for question in forty_questions(model.card)[0]]
        return [f"Modelfile: {write_modelfile(model, folder, name, asked)}"]

    dense = 4 * sum(entry.numel for entry in model.weights.entries.values())
    return _Job(models, [{"model": name}], order.kind, size + dense, write)


def _gguf_lora(order: Order, models: list[Leaving]) -> _Job:
    config = models[0].weights.config
    architecture(config)
    adapters = [portable(model.strengths) for model in models]
    files = [{"adapter": f"{model.name}-{order.kind}.gguf"} for model in models]

    def write(folder: Path) -> list[str]:
        for model, adapter, file in zip(models, adapters, files, strict=True):
            write_adapter(folder / file["adapter"], adapter, config, model.name, order.kind)
        return [note for adapter in adapters for note in adapter.notes]

    dense = 4 * sum(entry.numel for entry in models[0].weights.entries.values())
    return _Job(models, files, order.kind, dense, write)


def _meta(order: Order, models: list[Leaving]) -> _Job:
    model = models[0]
    meta.params_of(model.weights.config)
    size = hf_folder.size(model, order.dtype)

    def write(folder: Path) -> list[str]:
        meta.write_meta(model, folder, order.dtype)
        ends = joined(model.tokenizer.convert_ids_to_tokens(list(model.ends)))
        notes = [f"Meta's format has no chat template: prompts are up to its tools, and answers end at {ends}"]
        if not (folder / meta.TOKENIZER).is_file():
            notes.append("the base has no tokenizer.model, so there is none here: take its tokenizer.json along")
        return notes

    return _Job(
        models, [{"model": meta.WEIGHTS}], hf_folder.main_precision(model.weights, order.dtype), 2 * size, write
    )


def _vllm(order: Order, models: list[Leaving]) -> _Job:
    served = served_adapters(models)
    base = order.serve_base or str(models[0].base.resolve())

    def write(folder: Path) -> list[str]:
        write_vllm(served, folder, base, order.gpus)
        rewritten = [note for one in served for note in one.adapter.notes]
        return [*rewritten, *(f"not carried: {lost}" for lost in LOST)]

    size = 4 * sum(a.numel() + b.numel() for one in served for a, b in one.adapter.modules.values())
    precision = hf_folder.main_precision(models[0].weights, "auto")
    return _Job(models, [{"adapter": one.path} for one in served], precision, size, write)


def _say_needs(job: _Job, target: Path, say: Say) -> None:
    """Disk and memory, before work begins. Raises ExportRefused where the disk has too little room."""
    needed = job.n_bytes + BESIDE
    free = check_room(target, needed)
    weights = job.models[0].weights
    adapters = sum(used.files.weights.stat().st_size for model in job.models for used in model.strengths)
    memory = 4 * 3 * weights.largest + 2 * adapters
    left = free_memory(pick_device())
    say(
        f"disk: {size_text(needed)} of {size_text(free)} free; memory for writing: {size_text(memory)}, a tensor at a "
        f"time (the proof takes the whole base), {size_text(left)} are free"
    )
