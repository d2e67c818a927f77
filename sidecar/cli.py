"""The ``sidecar`` command: run, check, simulate.

Owns arguments, exit codes, signals and what is printed. Must not know how any part works.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import uvloop

from sidecar import __version__, simulator
from sidecar.app import App
from sidecar.configuration import Source, describe, load_file, text_of
from sidecar.descriptors import raise_limit
from sidecar.drain import Word
from sidecar.reload import FileWatch, Reloader
from sidecar.secrets import SecretUnreadableError
from sidecar.telemetry.line_output import LineOutput, redirect_logging
from sidecar.workers import run_worker, run_workers, usable_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sidecar.configuration import Loaded
    from sidecar.settings import Settings

EXIT_BAD_CONFIGURATION = 2
EXIT_CANNOT_START = 1

_SWITCH_S = 0.0005
"""How long another thread may keep the interpreter from the loop that relays tokens. At Python's 5 ms every batch of
spans that is encoded could hold tokens up for as long: it halved the latency's p99 while 500 spans/s are exported."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit code: 0, 1 (cannot start) or 2 (wrong arguments or configuration)."""
    parser = _parser()
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        return int(args.do(args))
    except KeyboardInterrupt:
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sidecar", description="A streaming data plane that stands before any LLM API."
    )
    parser.add_argument("--version", action="version", version=f"llm-sidecar {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="stand before an upstream")
    source = run.add_mutually_exclusive_group(required=True)
    source.add_argument("--upstream", metavar="URL", help="the one upstream; alone this is enough")
    source.add_argument("--config", metavar="FILE", help="a YAML configuration")
    run.add_argument("--listen", metavar="ADDRESS", help="HOST:PORT or unix:///path (default 127.0.0.1:8080)")
    run.add_argument("--admin", metavar="ADDRESS", help="HOST:PORT or unix:///path (default 127.0.0.1:9090)")
    run.add_argument("--format", metavar="NAME", help="what clients are sent unless they ask: native or typed")
    run.add_argument("--workers", metavar="N", help="so many processes, or auto: one for each core (default 1)")
    run.set_defaults(do=_run)

    worker = commands.add_parser("worker")  # without a help text it is not listed: it is for the parent alone
    for name in ("number", "listener", "counts", "control"):
        worker.add_argument(f"--{name}", type=int, required=True)
    worker.set_defaults(do=_work)

    check = commands.add_parser("check", help="check a configuration and show what it resolves to")
    check.add_argument("file", metavar="FILE")
    check.set_defaults(do=_check)

    simulate = commands.add_parser("simulate", help="an upstream for demos, tests and benchmarks")
    simulator.add_arguments(simulate)
    simulate.set_defaults(do=simulator.run)
    return parser


def _source(args: argparse.Namespace) -> Source:
    return Source(
        upstream=args.upstream or "",
        name=args.config or "",
        text=text_of(args.config) if args.config else None,
        listen=args.listen,
        admin=args.admin,
        format=args.format,
        workers=args.workers,
    )


def _run(args: argparse.Namespace) -> int:
    watch = FileWatch(args.config) if args.config else None
    source = _source(args)
    loaded = source.load(os.environ)
    if loaded.settings is None:
        sys.stderr.write(loaded.render_problems() + "\n")
        return EXIT_BAD_CONFIGURATION
    workers = loaded.settings.workers or usable_cores()
    logs = loaded.settings.logs
    lines = LineOutput(logs, is_shared=workers > 1)
    redirect_logging(lines, logs.level)
    lines.start()
    sys.setswitchinterval(_SWITCH_S)
    try:
        for warning in loaded.settings.warnings:
            logging.getLogger("sidecar").warning(warning)
        raise_limit()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            if workers > 1:
                return runner.run(run_workers(loaded.settings, source, watch, workers, os.environ))
            runner.run(_serve(loaded.settings, lines, lambda: source.read_again().load(os.environ), watch))
    except (OSError, SecretUnreadableError, ValueError) as error:
        lines.close()  # before the last word, which then is the last
        sys.stderr.write(f"sidecar: {error}\n")
        return EXIT_CANNOT_START
    finally:
        lines.close()
    return 0


async def _serve(settings: Settings, lines: LineOutput, load: Callable[[], Loaded], watch: FileWatch | None) -> None:
    """Run until told to stop, by a signal, and all is over or nobody waits any longer."""
    loop = asyncio.get_running_loop()
    app = App(settings, os.environ, lines)
    for number, word in ((signal.SIGINT, Word.INTERRUPT), (signal.SIGTERM, Word.STOP)):
        loop.add_signal_handler(number, app.tell, word, number.name)
    reloader = Reloader(app, load, watch, loop)
    loop.add_signal_handler(signal.SIGHUP, reloader.ask)
    await app.start()
    reloader.start()
    logger = logging.getLogger("sidecar")
    admin = settings.admin if settings.admin.path else replace(settings.admin, port=app.admin_port)
    logger.info("listening on %s, admin on %s", app.address, admin)
    try:
        await app.closing()
    finally:
        reloader.close()
        await app.close()


def _work(args: argparse.Namespace) -> int:
    sys.setswitchinterval(_SWITCH_S)
    return run_worker(args.number, args.listener, args.counts, args.control)


def _check(args: argparse.Namespace) -> int:
    loaded = load_file(args.file, environ=os.environ)
    if loaded.settings is None:
        sys.stdout.write(loaded.render_problems() + "\n")
        return EXIT_BAD_CONFIGURATION
    sys.stdout.write("ok\n" + describe(loaded.settings).rstrip("\n") + "\n")
    return 0
