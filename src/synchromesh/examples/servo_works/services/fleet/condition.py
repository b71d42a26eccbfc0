"""The condition of a drive, decided purely: what its readings, one after the other, come to.

    new ──▶ running ──80 °C──▶ hot ──below 70 °C──▶ running      a fault, from anywhere: faulted

Between the two temperatures it stays what it was, so that one that is about as hot does not change
its state with every reading.
"""

from contracts.fleet import MachineState, Reading
from msgspec import Struct

HOT_C, COOL_C = 80.0, 70.0


class Condition(Struct, frozen=True):
    """What the readings so far come to; before the first one, of a drive that is new."""

    readings: int = 0
    state: MachineState = "new"
    at_s: int = 0
    temperature_c: float = 0.0
    hottest_c: float = 0.0
    current_a: float = 0.0
    last_fault: str = ""


def after(condition: Condition, reading: Reading) -> Condition:
    """Return the condition after one more reading."""
    heat = reading.temperature_c
    return Condition(
        condition.readings + 1,
        _state(condition.state, reading),
        reading.at_s,
        heat,
        max(condition.hottest_c, heat) if condition.readings else heat,
        reading.current_a,
        reading.fault or condition.last_fault,
    )


def _state(before: MachineState, reading: Reading) -> MachineState:
    if reading.fault:
        return "faulted"
    was_hot = before == "hot"
    return "hot" if reading.temperature_c >= (COOL_C if was_hot else HOT_C) else "running"
