"""An export asked in the tool that it is for, and in transformers; what comes of it for each model in the folder."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from alpaca.base.find import resolve_base
from alpaca.base.headers import fingerprint
from alpaca.errors import CheckUnavailable, WrongBase
from alpaca.export import judges, read_back
from alpaca.export.agreement import Agreement, Tool, check, first_difference_lines
from alpaca.export.base_gguf import write_base
from alpaca.export.greedy import mean_loss
from alpaca.export.in_memory import Transformers
from alpaca.export.openai_server import OpenAIServer
from alpaca.export.proof import Proof
from alpaca.progress import Say

Found = list[tuple[Proof, Agreement]]


def check_all(folder: Path, proofs: Sequence[Proof], say: Say, *, base_model: str | None = None) -> Found:
    """Ask every model of an export in transformers, and in its own tool where that is here; say what was found.

    `base_model`: where the base is, for exports that come without it. Raises CheckUnavailable, WrongBase.
    """
    found: Found = []
    for proof in proofs:
        with _in_memory(folder, proof, base_model) as asked:
            there = mean_loss(asked.model, proof.references)
            found.append((proof, _judged(proof, asked, there, say)))
        del asked
        gc.collect()
    return [*found, *_in_its_tool(folder, proofs, say, base_model)]


def check_server(proofs: Sequence[Proof], url: str, model: str | None, key: str | None, say: Say) -> Found:
    """Ask a server with OpenAI's routes. `model`: its name for the only one, or which of several is to be asked; None
    takes the only one that the server lists, and asks for adapters by their names. Raises CheckUnavailable."""
    if model is not None and len(proofs) > 1:
        there = ", ".join(proof.name for proof in proofs)
        proofs = [proof for proof in proofs if proof.name == model]
        if not proofs:
            raise CheckUnavailable(f"--model is {model!r}, and the export holds {there}")
    found: Found = []
    for proof in proofs:
        name = model or (proof.name if proof.what == "vllm" else None)
        found.append((proof, _judged(proof, OpenAIServer(url, name, key=key), None, say)))
    return found


def _judged(proof: Proof, tool: Tool, there: float | None, say: Say) -> Agreement:
    agreement = check(proof, tool, there)
    _say(proof, agreement, say)
    return agreement


def _say(proof: Proof, agreement: Agreement, say: Say) -> None:
    say(f"check: {proof.name}: {agreement.line()}")
    for line in first_difference_lines(agreement) if not agreement.good else []:
        say(line)


def _in_memory(folder: Path, proof: Proof, base_model: str | None) -> AbstractContextManager[Transformers]:
    """The model as it can be asked here, whatever is installed."""
    if proof.what == "merged":
        return _folder(folder, proof.precision)
    if proof.what == "gguf":
        return read_back.gguf(folder / proof.files["model"], proof.here)
    if proof.what == "meta":
        return read_back.meta(folder, proof.ends, proof.here)
    made = read_back.gguf_adapter if proof.what == "gguf-lora" else read_back.adapter_folder
    return made(folder / proof.files["adapter"], _base(proof, base_model), proof.jinja, proof.ends, proof.here)


@contextmanager
def _folder(folder: Path, precision: str) -> Iterator[Transformers]:
    yield Transformers.of_folder(folder, precision)


def _in_its_tool(
    folder: Path, proofs: Sequence[Proof], say: Say, base_model: str | None
) -> Iterator[tuple[Proof, Agreement]]:
    what = proofs[0].what
    if what in ("gguf", "gguf-lora"):
        if judges.llamacpp_python() is None:
            say("check: llama.cpp itself was not asked: it is not here (pip install xllamacpp, or make test-export)")
            return
        for proof in proofs:
            with _llamacpp(folder, proof, base_model) as server:
                yield proof, _judged(proof, server, None, say)
    elif what == "vllm":
        if judges.vllm_command() is None:
            say("check: vLLM itself was not asked: it is not here. Start serve.sh where it is, and check with --url")
            return
        # All adapters at the same time. An interruption ends the server first, and with it what the threads wait for.
        with ThreadPoolExecutor(len(proofs)) as threads, judges.vllm(folder) as url:

            def asked(proof: Proof) -> Agreement:
                return check(proof, OpenAIServer(url, proof.name, f"vLLM on {proof.name}"))

            for proof, agreement in zip(proofs, threads.map(asked, proofs), strict=True):
                _say(proof, agreement, say)
                yield proof, agreement


@contextmanager
def _llamacpp(folder: Path, proof: Proof, base_model: str | None) -> Iterator[OpenAIServer]:
    if proof.what == "gguf":
        with judges.llamacpp(folder / proof.files["model"]) as server:
            yield server
        return
    with TemporaryDirectory(prefix=".base-", dir=folder) as place:
        model = Path(place) / "base-F32.gguf"
        write_base(_base(proof, base_model), proof.jinja, proof.ends, model)
        with judges.llamacpp(model, folder / proof.files["adapter"]) as server:
            yield server


def _base(proof: Proof, base_model: str | None) -> Path:
    """The base that an adapter goes on. Raises WrongBase for another than the proof's."""
    base = resolve_base(base_model or proof.base)
    if fingerprint(base) != proof.fingerprint:
        raise WrongBase(
            f"{proof.name} was made for {proof.base} (fingerprint {proof.fingerprint}); {base} is another base "
            f"(fingerprint {fingerprint(base)})"
        )
    return base
