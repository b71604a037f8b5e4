"""`python -m alpaca.export`: take a model anywhere, and prove that it arrived.

python -m alpaca.export merged --adapter lora-alpaca --output_dir out/merged
python -m alpaca.export gguf --adapter lora-alpaca --outtype Q8_0 --output_dir out/gguf
python -m alpaca.export gguf-lora --adapter lora-alpaca --output_dir out/gguf-lora
python -m alpaca.export meta --adapter lora-alpaca --output_dir out/meta
python -m alpaca.export vllm --adapter lora-a lora-b --output_dir out/vllm
python -m alpaca.export check out/gguf
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from alpaca.errors import BadSetting, ExportFailed, end_as_interrupted, exit_on_error
from alpaca.paths import as_written
from alpaca.progress import say

CHECK = "check"
HELP = {
    "merged": "a Hugging Face folder with the adapters in the weights: transformers, vLLM, TGI",
    "gguf": "one GGUF file with a Modelfile: llama.cpp, Ollama, LM Studio",
    "gguf-lora": "the adapter alone as GGUF, for llama.cpp's --lora",
    "meta": "consolidated.00.pth and params.json, as Meta's own code reads them",
    "vllm": "a folder with the adapters, serve.sh and manifests: vLLM, KServe, Ray Serve",
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(
        prog="python -m alpaca.export", description=(__doc__ or "").partition("\n")[0],
        epilog=(__doc__ or "").partition("\n")[2], formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    words = out.add_subparsers(dest="what", required=True, metavar="WHAT")
    for what, help_text in HELP.items():
        _add_options(words.add_parser(what, help=help_text, description=help_text), what)
    asked = words.add_parser(CHECK, help="ask an export again: here, in its own tool, or on a server")
    asked.add_argument("folder", type=as_written, metavar="OUT", help="what an export made")
    asked.add_argument("--url", help="an OpenAI-compatible server that serves it: http://localhost:8000")
    asked.add_argument("--model", help="the model's name there (default: the only one, or the adapters' names)")
    asked.add_argument("--api_key", help="what the server wants as its key")
    asked.add_argument("--base_model", help="where the base is, for exports that come without it")
    asked.add_argument("--push_to", metavar="OWNER/NAME", help="upload it to the hub where it answers as here")
    return out


def _add_options(out: argparse.ArgumentParser, what: str) -> None:
    several = what in ("vllm", "gguf-lora")
    out.add_argument(
        "--adapter", nargs="+", default=[], metavar="ADAPTER", required=several,
        help="a folder, archive or https URL; a:0.7+b:0.5 makes one of two"
        + ("; several become several" if several else "; without it the base alone is exported"),
    )  # fmt: skip
    out.add_argument("--output_dir", type=as_written, required=True, help="the folder to be made; it must not be there")
    out.add_argument("--base_model", help="a folder, a name in weights/ or a hub id (default: $BASE_MODEL)")
    out.add_argument("--adapter_scale", type=float, default=1.0, help="times the adapters' strength (default: 1)")
    out.add_argument("--prompt_template_name", default="", help="default: the one an adapter was trained with")
    if what in ("merged", "meta"):
        out.add_argument("--dtype", default="auto", choices=["auto", "bf16", "fp32", "fp16"],
                         help="how weights are stored; auto is as in the base (default)")  # fmt: skip
    if what == "gguf":
        out.add_argument("--outtype", default="Q8_0", type=str.upper, metavar="TYPE",
                         help="F32, F16, BF16, Q8_0, Q5_1, Q5_0, Q4_1 or Q4_0 (default: Q8_0)")  # fmt: skip
    if what == "gguf-lora":
        out.add_argument("--outtype", default="F32", type=str.upper, metavar="TYPE", help="F32 or F16 (default: F32)")
    if what == "vllm":
        out.add_argument("--serve_base", default="", metavar="BASE",
                         help="what vLLM is started with, a path or hub id (default: the base's folder)")  # fmt: skip
        out.add_argument("--tensor-parallel-size", "--tensor_parallel_size", dest="gpus", type=int, default=1,
                         help="GPUs that share the base (default: 1)")  # fmt: skip
    out.add_argument("--push_to", metavar="OWNER/NAME", help="upload it to the hub once it was checked")
    out.add_argument("--public", action="store_true", help="make the hub's repository public (default: private)")


@exit_on_error
def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, then export or check."""
    options = parser().parse_args(arguments)
    end_as_interrupted()
    # OpenMP's threads spin while they wait for each other, and where another program has one of the cores they wait all
    # the time: the same answers then take many times the processor's time. torch reads this when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if options.push_to:
        from alpaca.export.hub import check_name

        check_name(options.push_to)
    _check(options) if options.what == CHECK else _export(options)


def _export(options: argparse.Namespace) -> None:
    from alpaca.export.exporting import Order, export

    given = vars(options)
    fields = {field.name for field in dataclasses.fields(Order)}
    order = Order(**{name: value for name, value in given.items() if name in fields}, adapters=tuple(options.adapter))
    folder, proofs = export(order, say)
    if options.push_to:
        _push(folder, proofs[0].files.get("adapter", "") if options.what == "vllm" else "", options)


def _check(options: argparse.Namespace) -> None:
    from alpaca.export.checking import check_all, check_server
    from alpaca.export.proof import read_proofs

    folder: Path = options.folder
    if (options.model or options.api_key) and not options.url:
        raise BadSetting("--model and --api_key are for a server: give its --url")
    proofs = read_proofs(folder)
    if options.url:
        found = check_server(proofs, options.url, options.model, options.api_key, say)
    else:
        found = check_all(folder, proofs, say, base_model=options.base_model)
    if bad := [agreement for _, agreement in found if not agreement.good]:
        raise ExportFailed(f"{folder}, asked in {bad[0].tool}: {bad[0].verdict}")
    say(f"check: {folder} answers as here")
    if options.push_to:
        options.public = False
        _push(folder, "", options)


def _push(folder: Path, part: str, options: argparse.Namespace) -> None:
    from alpaca.export.hub import push

    push(folder / part, options.push_to, say, private=not options.public)


if __name__ == "__main__":
    main()
