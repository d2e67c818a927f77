"""`sidecar simulate`: the simulator as a command.

Owns its flags and its life in the foreground. Must not know how anything is answered.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys

import uvloop

from sidecar.configuration.addresses import parse_address
from sidecar.settings import Address
from sidecar.simulator.faults import Behaviour, knobs
from sidecar.simulator.server import serve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` the flags of `run`."""
    parser.add_argument("--listen", required=True, type=_listen_address, metavar="HOST:PORT", help="or unix:///path")
    group = parser.add_argument_group(
        "behaviour", "also per request: header 'X-Simulate-Interval-Ms: 5', query '?simulate=interval_ms:5,no_done'"
    )
    for name, parse, says in knobs():
        flag = f"--{name.replace('_', '-')}"
        default = getattr(Behaviour(), name)
        if default is False:
            group.add_argument(flag, action="store_true", help=says)
        else:
            group.add_argument(flag, type=parse, default=default, metavar="N", help=f"{says} (default: {default})")


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM. Returns the exit status."""
    behaviour = Behaviour(**{name: getattr(args, name) for name, _, _ in knobs()})
    try:
        uvloop.run(_serve_until_told(args.listen, behaviour))
    except OSError as error:
        print(f"cannot listen on {args.listen}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


async def _serve_until_told(address: Address, behaviour: Behaviour) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = await serve(address, behaviour)
    where = server.address if server.address.path else f"http://{server.address}"
    print(f"simulator listening on {where}", flush=True)
    await stop.wait()
    await server.close()


def _listen_address(text: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None
