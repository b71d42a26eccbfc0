"""The command line of the demo; exit codes 0, 1 finding, 2 user's mistake, 3 internal."""

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from contracts.orders import PlaceOrder
from msgspec.structs import replace
from rich.console import Console
from shop import order_book, rates

from demo import account as accounts
from demo.door import Unanswered
from demo.play import play
from demo.report import FINDING, judge
from demo.running import NotInTime, SystemEnded, copy_shipped, set_rates
from synchromesh.cli.output import OutputClosed
from synchromesh.cli.show import console
from synchromesh.errors import ConfigError, SynchromeshError
from synchromesh.gateway.limits import interval_of

USER_MISTAKE = 2
INTERNAL = 3
INTERRUPTED = 130
ORDERS, ORDERS_MIN = 320, 60
PACE_MAX = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo, or judge one that was kept, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="demo",
        description="Runs servo-works as processes, breaks it on purpose, and audits what is left.",
    )
    parser.add_argument("--orders", type=int, default=ORDERS, help=f"by default {ORDERS}")
    parser.add_argument(
        "--rate", metavar="N/s", help="how often each customer may order, by default 50/s"
    )
    parser.add_argument(
        "--pace", type=int, default=1, metavar="N", help="orders come N times as fast, by default 1"
    )
    parser.add_argument(
        "--engine",
        choices=["postgres", "all"],
        default="",
        help="by default SQLite; postgres: NATS too, and two of each; all: both, one of each",
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="run in DIR and leave it there")
    parser.add_argument("--judge", type=Path, metavar="DIR", help="judge what --keep left in DIR")
    options = parser.parse_args(arguments)
    out = console()
    try:
        if options.judge is not None:
            return judge_kept(options.judge, out)
        ways = Options(options.rate, options.pace, options.engine)
        return run(options.orders, ways, options.keep, out)
    except Mistake as mistake:
        sys.stderr.write(f"demo: {mistake}\n")
        return USER_MISTAKE
    except Unanswered as finding:
        sys.stderr.write(f"demo: {finding}\n")
        return FINDING
    except SystemEnded as ended:
        sys.stderr.write(f"demo: {ended}\n")
        return USER_MISTAKE if ended.is_mistake else INTERNAL
    except (NotInTime, SynchromeshError, OSError) as error:
        sys.stderr.write(f"demo: {error}\n")
        return INTERNAL
    except OutputClosed:
        # What is left in the buffer would fail once more at the interpreter's exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return INTERRUPTED
    except (asyncio.CancelledError, KeyboardInterrupt):
        # All is stopped; who presses it once more changes nothing.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.stderr.write("demo: stopped; no process is left\n")
        return INTERRUPTED


class Mistake(Exception):
    """Raised when the demo was asked for what cannot be done."""


@dataclass(frozen=True)
class Options:
    """How the demo is run: how often each customer orders, how fast they come, which engine."""

    rate: str | None = None
    pace: int = 1
    engine: str = ""


def run(orders: int, ways: Options, keep: Path | None, out: Console) -> int:
    """Run the demo in a folder of its own and judge it.

    Raises:
        Mistake: the number of orders, their rate or pace, or the folder cannot be used.
        asyncio.CancelledError: it was stopped by a signal.
    """
    book = order_book()
    if not ORDERS_MIN <= orders <= len(book):
        raise Mistake(
            f"--orders {orders}: use {ORDERS_MIN} to {len(book)}, which is all of the book"
        )
    if not 1 <= ways.pace <= PACE_MAX:
        raise Mistake(f"--pace {ways.pace}: use 1 to {PACE_MAX}")
    rate = rates().orders if ways.rate is None else _rate(ways.rate)
    with ExitStack() as stack:
        if keep is None:
            temporary = tempfile.TemporaryDirectory(prefix="servo-works-")
            folder = Path(stack.enter_context(temporary))
        else:
            folder = _empty(keep)
        copy_shipped(folder)
        set_rates(folder, replace(rates(), orders=rate))
        account = asyncio.run(_stoppable(folder, book[:orders], ways, out))
        account.save(folder)
        code = judge_kept(folder, out)
    if keep is not None:
        out.print(f"kept in {folder}", markup=False, soft_wrap=True)
    elif code:
        out.print("--keep DIR keeps the databases and logs of a run")
    _tell_of_console(out)
    return code


def _tell_of_console(out: Console) -> None:
    """Say how to look at such a system in a browser; a checkout has the command beside Python."""
    beside = Path(sys.executable).with_name("synchromesh")
    command = "synchromesh"
    if beside.is_file() and beside.is_relative_to(Path.cwd()):
        command = str(beside.relative_to(Path.cwd()))
    out.print("\nlook at such a system, and break it, in your browser:")
    for line in (
        f"{command} new works --example",
        f"{command} --folder works dev",
        'then open the URL that it prints as "console"; the page Lab breaks what you like',
    ):
        out.print(f"  {line}", markup=False, soft_wrap=True)


def judge_kept(folder: Path, out: Console) -> int:
    """Judge the run that was kept in a folder, by its databases as they are now.

    Raises:
        Mistake: no run was kept there.
    """
    try:
        account = accounts.load(folder)
        return judge(account, folder, out)
    except (FileNotFoundError, ValueError) as error:
        raise Mistake(f"{folder} does not hold a whole run of the demo: {error}") from error


async def _stoppable(
    folder: Path, orders: list[PlaceOrder], ways: Options, out: Console
) -> accounts.Account:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None

    def stop() -> None:
        # Whoever presses Ctrl-C twice does not keep the system from being stopped in order.
        if not task.cancelling():
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    return await play(folder, orders, out, ways.pace, ways.engine)


def _rate(text: str) -> str:
    try:
        interval_of(text)
    except ConfigError as error:
        raise Mistake(f"--rate: {error.message}") from error
    return text


def _empty(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise Mistake(f"--keep {folder}: it is not empty; name a new folder")
    except OSError as error:
        raise Mistake(f"--keep {folder}: {error.strerror}; name a new folder") from error
    return folder.resolve()
