"""A GGUF file's metadata, typed; anything that this project can't convert rightly is refused here with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from alpaca.errors import ConversionError

if TYPE_CHECKING:
    from gguf import GGUFReader

T = TypeVar("T")
_REQUIRED: Any = object()


class Metadata:
    """Key–value pairs of an open file, by name."""

    def __init__(self, path: Path, reader: GGUFReader) -> None:
        self.path = path
        self._fields = reader.fields

    @overload
    def get(self, key: str, kind: type[T], default: None) -> T | None: ...
    @overload
    def get(self, key: str, kind: type[T], default: T = ...) -> T: ...

    def get(self, key: str, kind: type[T], default: T | None = _REQUIRED) -> T | None:
        """The value, which must be a `kind`; `default` where it is absent. Raises ConversionError."""
        field = self._fields.get(key)
        if field is None:
            if default is _REQUIRED:
                raise ConversionError(f"{self.path.name} has no {key}, which a LLaMA model needs")
            return default
        try:
            value = field.contents()
        except (ValueError, IndexError) as error:
            raise ConversionError(f"{self.path.name}: {key} can't be read: {error}") from None
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ConversionError(f"{self.path.name}: {key} is a {type(value).__name__}, expected {kind.__name__}")
        return value


def open_gguf(path: Path) -> GGUFReader:
    """Map the file. Raises ConversionError if it is none, is cut off, or is one part of several."""
    from gguf import GGUFReader

    if not path.is_file():
        raise ConversionError(f"{path} is not there")
    try:
        reader = GGUFReader(path)
    except Exception as error:  # the reader checks little: whatever goes wrong here is the file's fault
        raise ConversionError(f"{path} is no GGUF file, or is damaged or cut off: {error}") from None
    if reader.byte_order == "S":
        raise ConversionError(f"{path} was written for machines of the other byte order")
    if (parts := Metadata(path, reader).get("split.count", int, 1)) > 1:
        raise ConversionError(f"{path} is one of {parts} parts; join them with llama.cpp's gguf-split --merge first")
    return reader
