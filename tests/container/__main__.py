"""`make test-container`: build the image with a real Docker engine and run the tests that need it.

python -m tests.container [--if-available] [arguments for pytest]
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from types import FrameType

import pytest

from tests.conftest import SMOLLM2
from tests.container.dockerfile import ROOT
from tests.container.engine import Unavailable, compose, engine, say
from tests.container.image import BuildFailed, build_image

IF_AVAILABLE = "--if-available"


def _end(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


def main(arguments: list[str]) -> int:
    """Pytest's exit status; 0 without Docker where that was allowed, else 1."""
    signal.signal(signal.SIGTERM, _end)  # so that what was started is stopped
    optional = IF_AVAILABLE in arguments
    started = time.monotonic()
    try:
        with engine() as docker:
            image = build_image(docker, SMOLLM2)
            os.environ |= {"ALPACA_TEST_DOCKER": str(docker), "ALPACA_TEST_IMAGE": image}
            os.environ["ALPACA_TEST_COMPOSE"] = shlex.join(compose(docker))
            say(f"Testing the image ({time.monotonic() - started:.0f} s so far)")
            rest = [argument for argument in arguments if argument != IF_AVAILABLE]
            return int(pytest.main(["-m", "container", "--durations=5", str(ROOT / "tests" / "container"), *rest]))
    except BuildFailed as error:
        say(f"The image can't be built: {error}")
        return 1
    except Unavailable as error:
        outcome = "are skipped, as --if-available allows" if optional else "can't run"
        say(f"The tests of the container {outcome}: {error}")
        return 0 if optional else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
