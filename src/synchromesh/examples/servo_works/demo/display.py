"""What is seen while the demo runs: live progress on a terminal, plain lines elsewhere."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import fill

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Column

from demo.account import Account

TICK_S = 0.1
LINE_EVERY_S = 2.0


class Display:
    """Shows how far the orders of an account are, and what is being done to the system."""

    def __init__(self, out: Console, account: Account) -> None:
        self._out = out
        self._account = account
        self._began_s = asyncio.get_running_loop().time()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[act]:<8}"),
            BarColumn(),
            # What is short is never cut; a narrow screen shortens the bar.
            MofNCompleteColumn(table_column=Column(min_width=len(2 * str(account.orders)) + 1)),
            TextColumn("orders, {task.fields[so_far]}"),
            console=out,
            transient=True,
            auto_refresh=False,
            disable=not out.is_terminal,
        )
        self._bar = self._progress.add_task("orders", total=account.orders, act="", so_far="")

    @property
    def took_s(self) -> float:
        """Seconds since the display was made."""
        return asyncio.get_running_loop().time() - self._began_s

    def say(self, text: str) -> None:
        """Say what happens next; on a terminal that is narrower in several lines."""
        line = f"{self.took_s:5.1f} s  {text}"
        if self._out.is_terminal:
            line = fill(line, max(40, self._out.width), subsequent_indent=" " * 9)
        self._out.print(line, markup=False, soft_wrap=True)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show progress while the block runs."""
        ticking = asyncio.create_task(self._tick())
        try:
            with self._progress:
                yield
        finally:
            ticking.cancel()

    async def _tick(self) -> None:
        account = self._account
        next_line_s, last = LINE_EVERY_S, -1
        while True:
            answered, so_far = len(account.told), self._so_far()
            self._progress.update(
                self._bar, completed=answered, act=account.act, so_far=so_far, refresh=True
            )
            if not self._out.is_terminal and self.took_s >= next_line_s and answered != last:
                next_line_s, last = self.took_s + LINE_EVERY_S, answered
                self.say(f"  {answered} of {account.orders} orders answered, {so_far}")
            await asyncio.sleep(TICK_S)

    def _so_far(self) -> str:
        account = self._account
        return (
            f"{sum(account.requests.values())} requests, {len(account.failures)} failed, "
            f"{len(account.degraded)} degraded"
        )
