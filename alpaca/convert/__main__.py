"""`python -m alpaca.convert`: original checkpoints → Hugging Face-format bases."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from alpaca.convert.base_folder import convert
from alpaca.convert.family import FAMILIES
from alpaca.convert.find import find_origin
from alpaca.errors import ConversionError, exit_on_error
from alpaca.paths import as_written

EPILOG = """\
examples:
  python -m alpaca.convert.fetch                        fetch the default base, SmolLM2-135M-Instruct (GGUF)
  python -m alpaca.convert                              convert the only thing in unconverted-weights/
  python -m alpaca.convert --model_size 7B              unconverted-weights/7B + tokenizer.model → weights/llama-7b
  python -m alpaca.convert --model_size Llama-3.2-1B-Instruct --instruct
  python -m alpaca.convert --input_dir SomeModel.Q8_0.gguf --output_dir weights
"""


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(MB|GB)", text.strip(), re.IGNORECASE)
    size = float(match[1]) * {"MB": 10**6, "GB": 10**9}[match[2].upper()] if match else 0
    if size < 10**6:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a size from 1MB, such as 500MB or 2GB")
    return int(size)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(
        prog="python -m alpaca.convert",
        description="Convert Meta's LLaMA checkpoints or a GGUF file into a Hugging Face-format base.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    out.add_argument("--input_dir", type=as_written, default=Path("unconverted-weights"),
                     help="folder with checkpoints, or a .gguf file (default: unconverted-weights)")  # fmt: skip
    out.add_argument(
        "--model_size", help="folder inside input_dir that holds Meta's checkpoint, such as 7B; not for GGUF"
    )
    out.add_argument(
        "--output_dir",
        type=as_written,
        default=Path("weights"),
        help="where bases go, each in a folder of its own (default: weights)",
    )
    out.add_argument(
        "--family", choices=list(FAMILIES), help="Meta: which release this is, if it is not recognised correctly"
    )
    out.add_argument(
        "--instruct",
        action="store_true",
        help="Meta: this is a chat or instruct release; adds its chat template and its end-of-turn token",
    )
    out.add_argument(
        "--max_shard_size",
        type=_size,
        default=2 * 10**9,
        help="largest output file; about the most memory that is used, too (default: 2GB)",
    )
    return out


@exit_on_error
def main() -> None:
    """Read the command line and convert."""
    args = parser().parse_args()
    try:
        origin = find_origin(args.input_dir, args.model_size, family=args.family, instruct=args.instruct)
        convert(origin, args.output_dir, max_shard_bytes=args.max_shard_size)
    except OSError as error:  # no permission, no room left, a disk that fails
        raise ConversionError(f"{error.filename or args.output_dir}: {error.strerror}") from None


if __name__ == "__main__":
    main()
