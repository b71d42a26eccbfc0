"""Logs code that blocks the event loop, while it does: nothing else runs until it ends (D1).

A handler that sleeps, computes or reads without awaiting stops every deadline of its process. It
cannot be cancelled, but it can be found: a thread looks whether the loop still beats, and where it
does not, says in the log which line holds it.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
from collections.abc import Callable
from types import FrameType

BLOCKED_AFTER_S = 1.0
STACK_CHARS_MAX = 4000

_log = logging.getLogger("synchromesh.system")


class LoopWatchdog:
    """Watches the running loop from a thread; `start` on the loop, `stop` from anywhere.

    Args:
        blocked_after_s: how long the loop may stand still before its blocker is named, once for
            each time it stands still.
    """

    def __init__(self, *, blocked_after_s: float = BLOCKED_AFTER_S) -> None:
        self._blocked_after_s = blocked_after_s
        self._every_s = blocked_after_s / 4
        self._ended = threading.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._beat_s = 0.0
        self._is_reported = False

    def start(self) -> None:
        """Start watching the loop of this thread."""
        self._loop = asyncio.get_running_loop()
        self._watched = threading.get_ident()
        self._beat()
        threading.Thread(target=self._watch, name="synchromesh-watchdog", daemon=True).start()

    def stop(self) -> None:
        """Stop watching. May be repeated."""
        self._ended.set()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _beat(self) -> None:
        self._beat_s = self._loop.time()
        self._is_reported = False
        self._timer = self._loop.call_later(self._every_s, self._beat)

    def _watch(self) -> None:
        while not self._ended.wait(self._every_s):
            blocked_s = self._loop.time() - self._beat_s
            if blocked_s < self._blocked_after_s or self._is_reported:
                continue
            frame = sys._current_frames().get(self._watched)
            if frame is not None and not frame.f_code.co_filename.endswith("selectors.py"):
                # A loop that waits for events is not blocked: the whole process was held up.
                self._is_reported = True
                _log.error(
                    "the event loop has been blocked for %.1f s by %s; await, or give the work to "
                    "another process",
                    blocked_s,
                    _where(frame),
                    extra={"stack": "".join(traceback.format_stack(frame))[-STACK_CHARS_MAX:]},
                )


def watch_loop() -> Callable[[], None]:
    """Watch the running loop; returns a function that stops it."""
    watchdog = LoopWatchdog()
    watchdog.start()
    return watchdog.stop


def _where(frame: FrameType) -> str:
    code = frame.f_code
    return f"{code.co_qualname} ({code.co_filename}:{frame.f_lineno})"
