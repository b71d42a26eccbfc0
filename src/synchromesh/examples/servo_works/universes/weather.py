"""The weather of a universe: how the network misbehaves, and what else happens in some of them."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from synchromesh.service.forgetting import Retention
from synchromesh.testing import CALM, STORMY, NetworkFaults

# What is forgotten in universes that forget, and how soon; deliveries and prices stay for ever. A
# client asks for less than that time whether its order is placed, or it would place it again.
SAGAS_S = 40.0
RETENTION = Retention(
    sagas_s=SAGAS_S,
    events_s=dict.fromkeys(
        (
            "orders.order_placed",
            "orders.order_rejected",
            "billing.invoice_paid",
            "inventory.stock_changed",
            "inventory.stock_reserved",
        ),
        0.3,
    ),
    every_s=0.5,
    rows_max=25,
)
# How often those note that they watch the time, and how long a pause is one in which nobody did.
NOTED_EVERY_S, UNWATCHED_S = 1.0, 5.0
# How often processes write their spans, of which none is needed here.
SPANS_EVERY_S = 2.0

# In universes with an absence: how long inboxes remember, the longest that a saga may take, which
# is less, and for how long its owner is away.
KEEP_S, DEADLINE_S, ABSENCE_S, SWEEP_EVERY_S = 40.0, 15.0, 60.0, 2.0

# In which share of the stormy universes it happens besides that ...
SHARES = {
    "jumps": 0.2,  # all wall clocks are set forward or back, by up to a day
    "haste": 0.2,  # clients wait for hardly more than an answer takes
    "disks": 0.15,  # a database's disk fails, or is full, and is mended
    "releases": 0.15,  # two releases replace each other, in any order
    "forgetting": 0.1,  # public events go a moment after all have taken them, ended runs later
    "looks": 0.1,  # somebody verifies databases while they are worked on
    "absence": 0.025,  # orders is away for longer than inboxes remember
}


@dataclass(frozen=True, slots=True)
class Weather:
    """The faults of the network, and the rate of other faults."""

    faults: NetworkFaults
    faults_per_s: float = 0.0


PEACE = Weather(CALM)
STORM = Weather(replace(STORMY, duplication=0.06, tail=0.05), 1.2)
# Two clocks are wrong by almost the 5 s that calls allow for.
HURRICANE = Weather(replace(STORMY, loss=0.12, duplication=0.15, tail=0.12, skew_s=2.4), 4.0)


def kinds_of(seed: int | str) -> frozenset[str]:
    """Return what happens in a stormy universe besides the storm.

    Each has chance of its own, so that all else is as in a universe without it.
    """
    found = {
        what
        for what, share in SHARES.items()
        if random.Random(f"{seed}/{what}").random() < share  # noqa: S311
    }
    # Whoever subscribes for the first time takes what is left of the log, and no more.
    if "releases" in found:
        found -= {"forgetting", "absence"}
    # An hour that the clock jumps by is an hour that nobody may remember.
    return frozenset(found - {"jumps"} if "absence" in found else found)
