"""What Cog gets of an answer that fails: the code once, the name once, the message once."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from alpaca.cancellation import Cancellation
from alpaca.cogserver.stream import in_context
from alpaca.errors import AdapterNotFound, AlpacaError


def test_an_error_with_a_code_is_said_once_by_type_and_text_together() -> None:
    def pieces(cancellation: Cancellation) -> Generator[str, None, None]:
        yield "a"
        raise AdapterNotFound("no adapter 'x'")

    output = in_context(pieces)
    assert next(output) == "a"
    with pytest.raises(Exception) as caught:
        next(output)
    assert f"{type(caught.value).__qualname__}: {caught.value}" == "E4001 AdapterNotFound: no adapter 'x'"
    assert caught.value.__suppress_context__ and not isinstance(caught.value, AlpacaError)


def test_an_error_without_a_code_stays_what_it_is() -> None:
    def pieces(cancellation: Cancellation) -> Generator[str, None, None]:
        yield from ()
        raise KeyError("x")

    with pytest.raises(KeyError):
        next(in_context(pieces))
