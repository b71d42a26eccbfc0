"""A process of its own, once it has started."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from synchromesh.system.host.process import COLLECT_EVERY, spare_collector


@pytest.fixture
def collector() -> Iterator[None]:
    """Leave the collector as it was."""
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


@pytest.mark.usefixtures("collector")
def test_the_collector_is_spared_what_was_made_for_the_start() -> None:
    """What is there by then is never looked at again; what comes later is, if less often."""
    spare_collector()
    assert gc.get_freeze_count() > 10_000
    assert gc.get_threshold()[0] == COLLECT_EVERY
    assert gc.isenabled()

    class Knot:
        """Holds itself."""

    knot = Knot()
    knot.itself = knot  # type: ignore[attr-defined]
    del knot
    assert gc.collect() > 0
