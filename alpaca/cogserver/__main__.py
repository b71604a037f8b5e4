"""Cog's own HTTP server without Docker, as the image runs it.

    python -m alpaca.cogserver serve [--port 5000]          predictions
    python -m alpaca.cogserver train [--port 5001]          trainings
    python -m alpaca.cogserver predict -i prompt="…"        start it, ask once, stop it
    python -m alpaca.cogserver schema                       the OpenAPI schema, as docs/openapi.json has it

Run it where predict.py and train.py are. It writes .cog/openapi_schema.json, which Cog's command line would make.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any

from alpaca.cogserver.entry_points import read_schema, schema_text, write_schema
from alpaca.cogserver.schema import PREDICT, TRAIN, Endpoint, parse_inputs
from alpaca.cogserver.server import LOCAL, Server, check_port, server_command, server_environment, unwrapped
from alpaca.cogserver.webhooks import fenced
from alpaca.errors import exit_on_error
from alpaca.progress import say_aside

MODES = {"serve": PREDICT, "train": TRAIN}


def serve(mode: Endpoint, host: str, port: int) -> None:
    """Become Cog's server: this process is replaced, so that signals reach the server itself."""
    check_port(host, port)
    write_schema(Path())
    environment = fenced(server_environment(mode, port, Path()))
    if sys.stderr.isatty():
        environment.setdefault("LOG_FORMAT", "console")  # for people; a collector of logs gets JSON
    say_aside(f"Cog's server ({mode.path}) on http://{host}:{port}; Ctrl-C ends it")
    os.execve(sys.executable, server_command(mode, host), environment)


def predict(given: list[str], *, verbose: bool) -> int:
    """Start the server, send one prediction, write the answer to stdout; 0 where it succeeded."""
    with Server(log=sys.stderr if verbose else None) as server:
        inputs = parse_inputs(given, server.schema["components"]["schemas"])
        say_aside("starting the model …")
        server.wait_ready()
        completed: dict[str, Any] = {}
        for name, data in server.events(inputs):
            if name == "output":
                print(data["chunk"], end="", flush=True)
            elif name == "completed":
                completed = data
        print(flush=True)
    if completed.get("status") != "succeeded":
        say_aside(f"error: {unwrapped(completed.get('error') or 'the server ended before the answer did')}")
        return 1
    figures = ", ".join(f"{name} {value}" for name, value in completed.get("metrics", {}).items())
    say_aside(figures)
    return 0


def _end_on_sigterm(signum: int, frame: object) -> None:
    raise SystemExit(128 + signum)


@exit_on_error
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m alpaca.cogserver", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, port in (("serve", 5000), ("train", 5001)):
        command = commands.add_parser(name, help=f"serve {MODES[name].path} until it is stopped")
        command.add_argument("--port", type=int, default=port, help="default: %(default)s")
        command.add_argument("--host", default=LOCAL, help="0.0.0.0 lets other machines in (default: %(default)s)")
    commands.add_parser("schema", help="print the OpenAPI schema")
    ask = commands.add_parser("predict", help="answer once and end")
    ask.add_argument("-i", "--input", action="append", default=[], metavar="NAME=VALUE",
                     help="an input of the prediction, such as prompt=…; may be repeated")  # fmt: skip
    ask.add_argument("--verbose", action="store_true", help="show the server's log")
    arguments = parser.parse_args()
    if arguments.command in MODES:
        serve(MODES[arguments.command], arguments.host, arguments.port)
    if arguments.command == "schema":
        print(schema_text(read_schema(Path())))
        return
    signal.signal(signal.SIGTERM, _end_on_sigterm)
    sys.exit(predict(arguments.input, verbose=arguments.verbose))


if __name__ == "__main__":
    main()
