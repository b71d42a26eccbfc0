"""Logs code that blocks the event loop, while it does: nothing else runs until it ends (D1).

A handler that sleeps, computes or reads without awaiting stops every deadline of its process. It
cannot be cancelled, but it can be found: a thread looks whether the loop still beats, and where it
does not, says in the log which function and line hold it, and in a file for `status`, which such a
process cannot answer.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
from collections.abc import Callable
from types import CodeType, FrameType

BLOCKED_AFTER_S = 1.0
STACK_CHARS_MAX = 4000

# Where a loop of asyncio waits for events; one of uvloop has no frame, and waits in its caller's.
_WAITS = "selectors"
_CALLERS = ("asyncio", "synchromesh")

_log = logging.getLogger("synchromesh.system")


class LoopWatchdog:
    """Watches the running loop from a thread; `start` on the loop, `stop` from anywhere.

    Args:
        blocked_after_s: how long the loop may stand still before its blocker is named, once for
            each time it stands still.
        on_blocked: called in the thread with the blocker, and with "" once the loop runs again.
        on_beat: called on the loop with how late it came to each beat, in seconds.
        is_up: whether there is somebody to keep waiting. What blocks a process that imports its
            code is told as a matter of course.
    """

    def __init__(
        self,
        *,
        blocked_after_s: float = BLOCKED_AFTER_S,
        on_blocked: Callable[[str], None] = lambda _: None,
        on_beat: Callable[[float], None] = lambda _: None,
        is_up: Callable[[], bool] = lambda: True,
    ) -> None:
        self._on_beat, self._is_up = on_beat, is_up
        self._blocked_after_s = blocked_after_s
        self._on_blocked = on_blocked
        self._every_s = blocked_after_s / 4
        self._ended = threading.Event()
        self._timer: asyncio.Handle | None = None
        self._beat_s = 0.0
        # The code that calls what the loop has to run; of uvloop that is who runs the loop.
        self._caller: CodeType | None = None

    def start(self) -> None:
        """Start watching the loop of this thread."""
        self._loop = asyncio.get_running_loop()
        self._watched = threading.get_ident()
        self._beat_s = self._loop.time()
        self._timer = self._loop.call_soon(self._beat)
        threading.Thread(target=self._watch, name="synchromesh-watchdog", daemon=True).start()

    def stop(self) -> None:
        """Stop watching. May be repeated."""
        self._ended.set()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _beat(self) -> None:
        before_s, self._beat_s = self._beat_s, self._loop.time()
        self._caller = sys._getframe(1).f_code
        self._timer = self._loop.call_later(self._every_s, self._beat)
        self._on_beat(max(0.0, self._beat_s - before_s - self._every_s))

    def _watch(self) -> None:
        # The beat after which a blocker was named that may still be there.
        named_s: float | None = None
        while not self._ended.wait(self._every_s):
            beat_s = self._beat_s
            if named_s not in (None, beat_s):
                named_s = None
                self._on_blocked("")
            blocked_s = self._loop.time() - beat_s
            if blocked_s < self._blocked_after_s or named_s is not None:
                continue
            frame = sys._current_frames().get(self._watched)
            if frame is None or _module(frame) == _WAITS or frame.f_code is self._caller:
                # A loop that waits for events is not blocked: the whole process was held up.
                continue
            named_s, blocker = beat_s, _blocker(frame, self._caller)
            self._on_blocked(blocker)
            _log.log(
                logging.ERROR if self._is_up() else logging.INFO,
                "the event loop has been blocked for %.1f s by %s; await, or give the work to "
                "another process",
                blocked_s,
                blocker,
                extra={"stack": "".join(traceback.format_stack(frame))[-STACK_CHARS_MAX:]},
            )
        if named_s is not None:
            self._on_blocked("")


def watch_loop(
    on_blocked: Callable[[str], None], on_beat: Callable[[float], None], is_up: Callable[[], bool]
) -> Callable[[], None]:
    """Watch the running loop, as `LoopWatchdog` does; returns a function that stops it."""
    watchdog = LoopWatchdog(on_blocked=on_blocked, on_beat=on_beat, is_up=is_up)
    watchdog.start()
    return watchdog.stop


def _blocker(frame: FrameType, loops: CodeType | None) -> str:
    """Name what the loop or one of us called, such as a handler, and where that stands."""
    called, caller = frame, frame.f_back
    while (
        caller is not None
        and caller.f_code is not loops
        and _module(caller).partition(".")[0] not in _CALLERS
    ):
        called, caller = caller, caller.f_back
    blocker = f"{_module(called)}.{_place(called)}"
    return blocker if called is frame else f"{blocker}, in {_place(frame)}"


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "?"))


def _place(frame: FrameType) -> str:
    code = frame.f_code
    return f"{code.co_qualname} ({code.co_filename}:{frame.f_lineno})"
