"""A call that is told by callbacks: its first attempt over HTTP, without a task or a future.

What `fast` does for a caller that awaits, this does for one that has something else to do: the
gateway, whose requests and branches are callbacks (see `gateway.prepared`, which starts them). A
first attempt that failed goes on by the slow way, in a task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias

from synchromesh.calls.http_client import reply_of_wire, spent
from synchromesh.calls.plan import First, Plan, Target
from synchromesh.calls.sending import Sending
from synchromesh.calls.wire import Reply
from synchromesh.codec import NO_FIT
from synchromesh.context import CallContext
from synchromesh.errors import ConnectionLost, TimedOut
from synchromesh.http import ClientExchange, ExchangeState, RawPair
from synchromesh.http.client import ClientConnection, ExchangeOwner
from synchromesh.http.together import TurnWrites
from synchromesh.resilience import AttemptsLeft, DeadlinePassed

# Told of the value of the answer, or of the error.
Done: TypeAlias = Callable[[Any, BaseException | None], None]


class StartedCall(ClientExchange):
    """One call under way; `cancel` gives it up.

    Attributes:
        deadline_s: of the call; `due_s` is that of its first attempt.
        given: the extra attempts that were set aside for the callee's side.
        permit: the breaker's; 0 where there is none.
    """

    # What a class has costs no store for each call, as a slot would.
    slot = None
    lost: ConnectionLost | None = None
    connection: ClientConnection | None = None
    connecting: asyncio.Task[None] | None = None
    owner: ExchangeOwner | None = None
    is_head = False
    may_reuse = True
    state = ExchangeState.NEW
    deadline_s: float | None = None
    given = permit = 0
    began_s = 0.0
    span_id = ""
    together: TurnWrites | None = None
    _reply: Reply | None = None
    _retrying: asyncio.Task[tuple[bytes, Any]] | None = None

    def __init__(
        self,
        plan: Plan,
        arguments: bytes,
        context: CallContext,
        left: AttemptsLeft,
        done: Done,
        target: Target,
    ) -> None:
        self._plan = plan
        self._arguments = arguments
        self._context = context
        self._left = left
        self._done: Done | None = done
        self._target = target
        self.key = context.key if plan.is_command else ""

    def on_answer(self, status: int, pairs: list[RawPair], body: bytes) -> None:
        """Tell the value of the answer, or go on behind an error."""
        plan = self._plan
        if not 200 <= status < 300:
            self._reply = reply_of_wire(status, pairs, body)
            self.go_on(plan.error_of(self._reply))
            return
        try:
            value = plan.decode(body or b"null")
        except NO_FIT as error:
            self._reply = reply_of_wire(status, pairs, body)
            self.go_on(error)
            return
        used, away_s = (0, 0.0) if plan.is_external else spent(pairs)
        plan.answered(self._context, self.span_id, self.permit, self._target, self.began_s, away_s)
        # As `AttemptsLeft.settle`, without its frame.
        self._left.left += self.given
        if used:
            self._left.spend(used)
        if plan.limiter is not None:
            plan.limiter.release()
        done, self._done = self._done, None
        if done is not None:
            done(value, None)

    def on_error(self, error: Exception) -> None:
        """Go on behind a failure."""
        # What it is called at its end is the edge's to say, which knows whose time it was.
        self.go_on(DeadlinePassed(self.due_s) if isinstance(error, TimedOut) else error)

    def cancel(self) -> None:
        """Give up; nobody is told."""
        self._done = None
        if self._retrying is not None:
            self._retrying.cancel()
        elif self.state is not ExchangeState.DONE:
            super().cancel()
            # Neutral, and recorded, as any call that its caller gave up.
            self.go_on(asyncio.CancelledError())

    def go_on(self, error: BaseException) -> None:
        """Go on by the slow way: it tells the breaker, and may try again."""
        self._release()
        plan = self._plan
        sending = Sending(
            plan,
            self._arguments,
            self._context,
            key=self.key,
            span_id=self.span_id,
            began_s=self.began_s,
        )
        # Most calls need none: what the slow way is to know of it is put together here.
        first = First(self.due_s, self.given, self.permit, self._target, self._reply, error)
        going = sending.go_on(first, self.deadline_s, self._left)
        task = self._retrying = asyncio.get_running_loop().create_task(going)
        task.add_done_callback(self._on_gone)

    def _on_gone(self, task: asyncio.Task[tuple[bytes, Any]]) -> None:
        self._retrying = None
        if task.cancelled():
            self._tell(None, asyncio.CancelledError())
            return
        error = task.exception()
        if error is None:
            self._tell(task.result()[1], None)
        else:
            self._tell(None, error)

    def _release(self) -> None:
        if self._plan.limiter is not None:
            self._plan.limiter.release()

    def _tell(self, value: Any, error: BaseException | None) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(value, error)
