"""OpenAI's routes, a fair queue, keys, metrics and a page, in front of one server of Cog's or several.

python -m alpaca.gateway --upstream http://localhost:5000        the page is at http://127.0.0.1:8000
python -m alpaca.gateway --keys keys.json --new_key anna         add a key to the file, and print it once
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import resource
import sys
from pathlib import Path

from alpaca.errors import BadGatewaySetting, exit_on_error
from alpaca.gateway.settings import Settings
from alpaca.progress import say_aside

CONNECTIONS = 2000  # at a time; one more gets HTTP 503
STOP_SECONDS = 120  # for running answers, after SIGTERM


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m alpaca.gateway", description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--upstream", action="append", default=[], metavar="URL",
                      help="a server of Cog's; may be repeated (default: http://localhost:5000)")  # fmt: skip
    made.add_argument("--host", default=Settings.host, help="where to listen (default: %(default)s)")
    made.add_argument("--port", type=int, default=Settings.port, help="default: %(default)s")
    made.add_argument("--open", action="store_true", help="let other machines in without keys")
    made.add_argument("--keys", type=Path, metavar="FILE", help="a file of hashed keys, read again when it changes")
    made.add_argument("--new_key", metavar="NAME", help="add a key to --keys, print it, and end")
    made.add_argument("--queue", type=int, default=Settings.queue, help="requests that may wait (default: %(default)s)")
    made.add_argument("--queue_seconds", type=float, default=Settings.queue_seconds,
                      help="how long each may (default: %(default)s)")  # fmt: skip
    made.add_argument("--places", type=int, help="requests that a server is given at a time (default: what it says of "
                      "itself, else 1)")  # fmt: skip
    made.add_argument("--name", default=Settings.name,
                      help="the name of a Cog model that does not describe itself (default: %(default)s)")  # fmt: skip
    made.add_argument("--body_bytes", type=int, default=Settings.body_bytes,
                      help="the most bytes of a request's body (default: %(default)s)")  # fmt: skip
    made.add_argument("--cors", action="append", default=[], metavar="ORIGIN",
                      help="an origin whose pages may ask from a browser; may be repeated")  # fmt: skip
    made.add_argument("--reports", type=Path, metavar="FOLDER", help="a folder with adapters, whose reports are shown")
    made.add_argument("--called", action="append", default=[], metavar="NAME", dest="names",
                      help="a name that clients call it by; any other is refused; may be repeated")  # fmt: skip
    made.add_argument("--log_prompts", action="store_true", help="write prompts and answers to the log")
    return made


def serve(settings: Settings) -> None:
    """Listen until a signal comes; running answers are completed then."""
    import uvicorn

    from alpaca.gateway.app import create_app
    from alpaca.gateway.caller import read_keys
    from alpaca.gateway.guard import KEEP_SECONDS, GuardedProtocol

    if settings.keys is not None:
        say_aside(f"keys: {len(read_keys(settings.keys))} in {settings.keys}")
    elif not settings.local:
        say_aside("keys: none; whoever reaches this port may ask (--open)")
    _raise_open_files()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO, stream=sys.stderr)
    say_aside(
        f"gateway on {settings.host}:{settings.port}, waiting for {', '.join(settings.upstreams)}; Ctrl-C ends it"
    )
    uvicorn.run(
        create_app(settings), host=settings.host, port=settings.port, http=GuardedProtocol, ws="none", loop="uvloop",
        lifespan="on", access_log=False, log_level="warning", log_config=None, server_header=False,
        proxy_headers=False, limit_concurrency=CONNECTIONS, timeout_keep_alive=KEEP_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
    )  # fmt: skip


def _raise_open_files() -> None:
    """Every answer takes two connections: as many as the system allows, not as few as it begins with."""
    with contextlib.suppress(ValueError, OSError):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 2 * CONNECTIONS + 100
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(wanted, hard)), hard))


def check_port(host: str, port: int) -> None:
    """Raise BadGatewaySetting where nothing can listen there."""
    import socket

    if not 0 < port < 1 << 16:
        raise BadGatewaySetting(f"--port {port}: a port is from 1 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise BadGatewaySetting(f"nothing can listen on {host}, port {port}: {error.strerror or error}. Take another "
                                "one: --port") from None  # fmt: skip


@exit_on_error
def main() -> None:
    given = vars(parser().parse_args())
    if (name := given.pop("new_key")) is not None:
        from alpaca.gateway.caller import add_key

        if given["keys"] is None:
            raise BadGatewaySetting("--new_key goes with --keys FILE")
        print(add_key(given["keys"], name))
        say_aside(f"the key of {name}: it is shown this once; {given['keys']} has only its hash")
        return
    given["upstreams"] = tuple(given.pop("upstream") or ["http://localhost:5000"])
    given["cors"], given["names"] = tuple(given["cors"]), tuple(name.lower() for name in given["names"])
    settings = Settings(**given)
    check_port(settings.host, settings.port)
    serve(settings)


if __name__ == "__main__":
    main()
