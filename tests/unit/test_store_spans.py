"""Units of work in traces."""

from synchromesh.errors import Rejection
from synchromesh.store import Once, SqliteStore, Unit
from synchromesh.telemetry import MemoryRing, Tracer
from synchromesh.testing import SimRuntime, run

TRACE = "0af7651916cd43dd8448eb211c80319c"


class No(Rejection, code="no", status=409):
    """Tells no."""


async def nothing(unit: Unit) -> None:
    """Write nothing."""


async def answer(unit: Unit) -> bytes:
    """Answer."""
    return b"1"


async def refuse(unit: Unit) -> None:
    """Refuse."""
    raise No("no")


def test_a_unit_within_a_trace_has_a_span_below_the_current_one() -> None:
    """Each unit is seen in the waterfall where it was submitted, with the code of its error."""

    async def main(runtime: SimRuntime) -> None:
        ring = MemoryRing()
        tracer = Tracer("shop", runtime, ring)
        store = await SqliteStore.open(
            "/shop.db", service="shop", schemas=[], runtime=runtime, tracer=tracer
        )
        await store.write(nothing, name="outside of any trace")
        assert len(ring) == 0
        with tracer.start("handle", "shop.sell", trace_id=TRACE) as around:
            await store.write(nothing, name="sell")
            await store.write_once(answer, Once("a", "k", "d"), name="sell once")
            try:
                await store.write(refuse, name="refuse")
            except No:
                around.note("refused", "yes")
        await store.close()
        units = [made for made in ring if made.kind == "unit"]
        assert [(made.name, made.status) for made in units] == [
            ("sell", "ok"),
            ("sell once", "ok"),
            ("refuse", "no"),
        ]
        assert {(made.trace_id, made.parent_id) for made in units} == {(TRACE, around.span_id)}
        assert all(made.took_us > 0 for made in units)

    run(main)
