"""The claims of `test_cascade` that fail today, with what was measured; None is never.

A claim that is kept is taken off: the test fails while it is listed. The list is to end empty.
"""

from __future__ import annotations

FAILS_TODAY: dict[str, dict[str, float | None]] = {
    "diamond / 25 % capacity / 200% / 1 s": {"goodput before": 0.721},
    "fan-out / stall / 100% / 1 s": {"recovery s": 1.2},
    "one service / none / 200% / 0.3 s": {"goodput before": 0.814},
    "one service / none / 200% / 5 s, clients retry": {"goodput": 0.705},
    "system 2": {"unrelated": 0.985},
    "system 3": {"goodput before": 0.764},
    "system 4": {"recovery s": 1.3},
    "system 9": {"goodput before": 0.829},
    "system 17": {"goodput before": 0.732},
    "system 18": {"recovery s": 1.1},
}
