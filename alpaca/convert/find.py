"""Find the origin that a command line means, or say what there is."""

from __future__ import annotations

from pathlib import Path

from alpaca.convert.gguf_model import GgufOrigin
from alpaca.convert.meta import MetaOrigin
from alpaca.convert.origin import Origin
from alpaca.errors import ConversionError
from alpaca.paths import this_python

_FETCH = f"or fetch the default base with {this_python()} -m alpaca.convert.fetch"


def find_origin(
    input_dir: Path, model_size: str | None, *, family: str | None = None, instruct: bool = False
) -> Origin:
    """The GGUF file or Meta checkpoint under `input_dir`; `model_size` names a folder of it.

    Raises ConversionError if there is none or several, and for everything that is wrong with the one found.
    """
    if not input_dir.exists():
        raise ConversionError(f"--input_dir {input_dir} is not there; put a checkpoint into it, {_FETCH}")
    found = [_named(input_dir, model_size)] if model_size else _candidates(input_dir)
    if len(found) != 1:
        if not found:
            raise ConversionError(
                f"{input_dir} has neither a .gguf file nor a folder with params.json; put one there, {_FETCH}"
            )
        listed = ", ".join(path.name for path in found)
        raise ConversionError(f"{input_dir} has {listed}: say which, with --model_size FOLDER or --input_dir FILE.gguf")
    if found[0].is_dir():
        return MetaOrigin(found[0], family=family, instruct=instruct)
    if family or instruct:
        raise ConversionError(
            f"--family and --instruct are for Meta's checkpoints; {found[0].name} carries its own settings"
        )
    return GgufOrigin(found[0])


def _named(input_dir: Path, model_size: str) -> Path:
    if not input_dir.is_dir():
        raise ConversionError(
            f"--model_size names a folder of --input_dir, but {input_dir} is a file; omit --model_size"
        )
    folders = [path for path in sorted(input_dir.iterdir()) if path.is_dir()]
    for path in folders:
        if path.name.lower() == model_size.lower():
            return path
    if input_dir.resolve().name.lower() == model_size.lower():
        return input_dir.resolve()
    there = ", ".join(path.name for path in folders) or "no folder at all"
    raise ConversionError(
        f"{input_dir} has no folder {model_size} (there is {there}); "
        f"expected {input_dir / model_size}/consolidated.00.pth"
    )


def _candidates(input_dir: Path) -> list[Path]:
    if input_dir.is_file():
        if input_dir.suffix.lower() != ".gguf":
            raise ConversionError(f"--input_dir {input_dir} is neither a folder nor a .gguf file")
        return [input_dir]
    if (input_dir / "params.json").is_file() or (input_dir / "consolidated.00.pth").is_file():
        return [input_dir.resolve()]
    return [
        path for path in sorted(input_dir.iterdir())
        if not path.name.startswith(".")
        and (path.suffix.lower() == ".gguf" if path.is_file() else (path / "params.json").is_file())
    ]  # fmt: skip
