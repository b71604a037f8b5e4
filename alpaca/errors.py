"""One exception family. Every error has a stable code that a client can match: ``E1001 EmptyPrompt: …``.

Codes by room: E1 requests, E2 data and templates, E3 bases and conversion, E4 adapters, E5 training, E6 export,
E7 synthesis.
A message names the file, row, field, value and limit, and says what to do.
"""

from __future__ import annotations

import errno
import functools
import io
import os
import shlex
import signal
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import ClassVar, ParamSpec

from alpaca.paths import PROJECT


class AlpacaError(Exception):
    """A mistake in what was asked or given; never a bug of the program. ``str()`` begins with code and name."""

    code: ClassVar[str] = "E1000"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return f"{self.code} {type(self).__name__}: {self.message}"


# --- E1: requests -------------------------------------------------------------------------------------------------
class BadRequest(AlpacaError):
    """A request that can't be served as it is."""


class EmptyPrompt(BadRequest):
    code = "E1001"


class PromptTooLong(BadRequest):
    code = "E1002"


class OutOfRange(BadRequest):
    code = "E1003"


class BadMessages(BadRequest):
    code = "E1004"


class ConflictingInputs(BadRequest):
    code = "E1005"


class BadComposition(BadRequest):
    """Adapters that can't make one answer together, or a text that names several and can't be read."""

    code = "E1006"


class GenerationFailed(AlpacaError):
    """A request that was in order and failed all the same, such as for memory; others are not touched by it."""

    code = "E1101"


class EngineStopped(AlpacaError):
    """The engine takes no requests any more."""

    code = "E1102"


class NoRoom(AlpacaError):
    """Memory is too short for what serving needs, or every place for an adapter stayed in use for too long."""

    code = "E1104"


class NoTurn(AlpacaError):
    """A request waited for its turn for as long as it may; it may be asked again later."""

    code = "E1105"


class ServerFailed(AlpacaError):
    """Cog's server did not start, or refused or lost a request; the message holds its reason."""

    code = "E1103"


class BadGatewaySetting(AlpacaError):
    """The gateway was told what can't be, or what must not be without a further word."""

    code = "E1106"


# --- E2: data and templates ---------------------------------------------------------------------------------------
class DataError(AlpacaError):
    code = "E2000"


class DataNotFound(DataError):
    code = "E2001"


class BadRows(DataError):
    code = "E2002"


class NoRowsLeft(DataError):
    code = "E2003"


class UnsupportedFile(DataError):
    code = "E2004"


class UnreadableFile(DataError):
    """A file that ends early, is not UTF-8, or is not what its ending says."""

    code = "E2005"


class TemplateNotFound(DataError):
    code = "E2101"


class BadTemplate(DataError):
    code = "E2102"


# --- E3: bases and conversion -------------------------------------------------------------------------------------
class BaseError(AlpacaError):
    code = "E3000"


class BaseNotFound(BaseError):
    code = "E3001"


class SeveralBases(BaseError):
    code = "E3002"


class BadBase(BaseError):
    code = "E3003"


class PrecisionUnavailable(BaseError):
    code = "E3004"


class ConversionError(BaseError):
    code = "E3101"


class ChecksumMismatch(BaseError):
    code = "E3102"


class FetchFailed(BaseError):
    code = "E3103"


# --- E4: adapters -------------------------------------------------------------------------------------------------
class AdapterError(AlpacaError):
    code = "E4000"


class AdapterNotFound(AdapterError):
    code = "E4001"


class BadAdapter(AdapterError):
    code = "E4002"


class WrongBase(AdapterError):
    code = "E4003"


class BadArchive(AdapterError):
    code = "E4004"


class DownloadRefused(AdapterError):
    code = "E4005"


class CacheFull(AdapterError):
    """The folder of unpacked adapters has no room that could be made; it may be asked for again later."""

    code = "E4006"


class CacheUnusable(AdapterError):
    """The folder where adapters are kept can't be written to."""

    code = "E4008"


class DownloadsBusy(AdapterError):
    """As many requests wait for downloads as may; it may be asked for again later."""

    code = "E4009"


class AdapterChanged(AdapterError):
    """Files that were checked are gone or were changed before they were read; it may be asked for again at once."""

    code = "E4007"


# --- E5: training -------------------------------------------------------------------------------------------------
class TrainingError(AlpacaError):
    code = "E5000"


class BadSetting(TrainingError):
    code = "E5001"


class BadCheckpoint(TrainingError):
    code = "E5002"


class NonFiniteLoss(TrainingError):
    code = "E5003"


class VerificationFailed(TrainingError):
    code = "E5004"


class OutOfMemory(TrainingError):
    code = "E5005"


class DiskFull(TrainingError):
    code = "E5006"


class TrainingKilled(TrainingError):
    """The process that trains was ended from outside."""

    code = "E5007"


class TrainingBusy(TrainingError):
    """Another training runs in this server, or into the same folder."""

    code = "E5008"


class PeerLost(TrainingError):
    """Several processes train together, and another one can't be reached any more."""

    code = "E5009"


# --- E6: export ---------------------------------------------------------------------------------------------------
class ExportError(AlpacaError):
    code = "E6000"


class ExportRefused(ExportError):
    """What was asked can't be written in the wanted form; the message says why, and which form can hold it."""

    code = "E6001"


class ExportFailed(ExportError):
    """What was made does not answer as the model did here, so it was not kept."""

    code = "E6002"


class CheckUnavailable(ExportError):
    """An export can't be asked: the tool that it is for is not there, or the server does not answer."""

    code = "E6003"


class PushFailed(ExportError):
    """The hub did not take what was to be uploaded."""

    code = "E6004"


class ExportUnwritten(ExportError):
    """Nothing can be written where the export was to lie: no folder can be made there, or the disk is full."""

    code = "E6005"


# --- E7: synthesis ------------------------------------------------------------------------------------------------
class SynthesisError(AlpacaError):
    code = "E7000"


class ModelRefused(SynthesisError):
    """The model can't be asked, and asking again would not help: no such model, a key that is not accepted."""

    code = "E7001"


class QuestionFailed(SynthesisError):
    """A question has no answer, however often it was asked; others may have one."""

    code = "E7002"


class WorkChanged(SynthesisError):
    """What was begun was begun otherwise: other settings, or a file that was changed since."""

    code = "E7003"


class LimitReached(SynthesisError):
    """The tokens or the money that may be spent are; what was made is kept."""

    code = "E7004"


class NothingUsable(SynthesisError):
    """The model answers, and nothing of what it answers can be used."""

    code = "E7005"


class RowsUnwritten(SynthesisError):
    """Rows can't be written where they were to lie, or the disk is full; what was written is kept."""

    code = "E7006"


class SynthesisBusy(SynthesisError):
    """Another process writes the same rows."""

    code = "E7007"


FULL_DISK = {errno.ENOSPC, errno.EDQUOT}


def is_full_disk(error: BaseException) -> bool:
    """Whether an error says that a disk is full, or that no more of it may be used."""
    return isinstance(error, OSError) and error.errno in FULL_DISK


P = ParamSpec("P")
# Faults of the disk or of permissions: nothing that a traceback would explain better.
OF_THE_MACHINE = FULL_DISK | {errno.EROFS, errno.EACCES, errno.EPERM}


def exit_on_error(main: Callable[P, None]) -> Callable[P, None]:
    """Let a command end on a user's mistake with one line on stderr and status 2 (so too on a full or forbidden disk,
    and in a Python without the project's packages), on Ctrl-C with status 130, on SIGTERM with 143."""

    @functools.wraps(main)
    def command(*args: P.args, **kwargs: P.kwargs) -> None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a terminal in Latin-1 gets "?" for what it can't show
                stream.reconfigure(errors="replace")
        try:
            main(*args, **kwargs)
        except AlpacaError as error:
            print(f"\nerror: {error}", file=sys.stderr)
            sys.exit(2)
        except BrokenPipeError:  # `… | head`: the reader left; keep Python's shutdown from complaining
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except OSError as error:
            if error.errno not in OF_THE_MACHINE:
                raise
            print(f"\nerror: {error.strerror}: {error.filename or 'no file named'}", file=sys.stderr)
            sys.exit(2)
        except ModuleNotFoundError as error:
            if find_spec("torch") is not None:  # this is the Python that the project was set up with
                raise
            print(f"\nerror: {_other_python(error.name)}", file=sys.stderr)
            sys.exit(2)
        except Terminated:
            print("\nended by SIGTERM", file=sys.stderr)
            sys.exit(128 + signal.SIGTERM)
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            sys.exit(130)

    return command


def _other_python(lacking: str | None) -> str:
    """What to run where this is not the Python that the project's packages were installed for."""
    ours = PROJECT / ".venv" / "bin" / "python"
    what = f"this Python ({sys.executable or 'unnamed'}) has no {lacking or 'torch'}"
    if not ours.exists():
        return f"{what}. Set the project up first: make demo"
    module = sys.modules["__main__"].__spec__
    called = ["-m", module.name.removesuffix(".__main__")] if module else [sys.argv[0]]
    again = shlex.join([os.path.relpath(ours), *called, *sys.argv[1:]])
    return f"{what}; the project's own has. Run: {again}"


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM): as with Ctrl-C, what is half written is cleared away first."""


def end_as_interrupted() -> None:
    """Let SIGTERM end this process like Ctrl-C does, and not in the middle of whatever it does."""

    def end(*_: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, end)
