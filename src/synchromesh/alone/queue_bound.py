"""The bound of the runs that wait for a place: they are rows of the application's own database."""

from __future__ import annotations

from synchromesh.durations import Range, refuse_wrong_number
from synchromesh.errors import Shed
from synchromesh.saga.tables import SagaRow
from synchromesh.store import Unit

# Whoever counts at SERIALIZABLE is in conflict with all who start one meanwhile, so that most do
# not count; as many may be beyond the bound, of each process.
UNCOUNTED_MAX = 64
_COUNT = "select count(*) from (select 1 from sm_saga where status = 'queued' limit ?) as queued"


class QueueBound:
    """Refuses to start runs while so many wait for a place; one for all units of an `Alone`.

    Args:
        queue_max: the runs that may wait; a few more where several processes start them.
    """

    def __init__(self, queue_max: int) -> None:
        refuse_wrong_number("Alone: queue_max", queue_max, Range(1), "int")
        self._queue_max = queue_max
        self._uncounted = 0

    async def check(self, unit: Unit, row: SagaRow) -> None:
        """Return where there is room for a run, or the same run was started before.

        Raises:
            Shed: there is none.
        """
        if self._uncounted > 0:
            self._uncounted -= 1
            return
        ((count,),) = await unit.execute(_COUNT, self._queue_max)
        left = self._queue_max - int(count or 0)
        if left > 0:
            self._uncounted = min(UNCOUNTED_MAX, left // 2)
            return
        there = await unit.execute("select name, digest from sm_saga where id = ?", row.id)
        if (row.name, row.digest) not in [(name, digest) for name, digest in there]:
            raise Shed(
                f"{self._queue_max} sagas of {unit.service} wait for a place already; {row.id!r} "
                "was not started: run more processes of `run_sagas`, or look why those that run "
                "do not go on, and ask again later"
            )

    def __repr__(self) -> str:
        return f"<QueueBound {self._queue_max}, {self._uncounted} are not counted>"
