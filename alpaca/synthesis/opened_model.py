"""The model that a command line names, and the limits on what it may take."""

from __future__ import annotations

import argparse

from alpaca.errors import BadSetting
from alpaca.progress import Say
from alpaca.synthesis.budget import Limits
from alpaca.synthesis.model import Model

MOST_AT_ONCE = 1024


def check_limits(options: argparse.Namespace) -> Limits:
    """What may be taken. Raises BadSetting before any work for what can't be, in the choice of the model too."""
    if not 1 <= options.concurrency <= MOST_AT_ONCE:
        raise BadSetting(f"--concurrency is {options.concurrency}: it must be from 1 to {MOST_AT_ONCE}")
    if not 0 < options.timeout < 86_400:
        raise BadSetting(f"--timeout is {options.timeout:g}: it must be from 0 to 86,400 seconds")
    if options.temperature is not None and not 0 <= options.temperature <= 2:
        raise BadSetting(f"--temperature is {options.temperature:g}: it must be from 0 to 2")
    if options.url and options.base_model:
        raise BadSetting("--url and --base_model both say where the model is: give one")
    if options.model and not options.url:
        raise BadSetting(
            "--model is the name of a model on a server: give its --url too (or --base_model in its place)"
        )
    return Limits(options.max_tokens_total, options.max_cost, options.price_in, options.price_out)


def open_model(options: argparse.Namespace, say: Say) -> Model:
    """The server's model with --url, else the base in this process. Raises ModelRefused, or the errors of bases."""
    if options.url:
        from alpaca.synthesis.server import ServerModel

        model = ServerModel(options.url, options.model, say=say, seconds=options.timeout)
        say(f"model: {model.name} at {model.described()['server']}, {options.concurrency} questions at a time")
        return model
    from alpaca.synthesis.engine import EngineModel

    return EngineModel(options.base_model, options.concurrency, options.precision, say=say)
