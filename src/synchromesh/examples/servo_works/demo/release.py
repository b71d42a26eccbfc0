"""Releases of orders and production with a bug, and those that mend it: files of the demo's own."""

from pathlib import Path

SERVICES = Path("services")
# Fields were renamed in the heads of those who wrote it: service, module, what is right, the bug.
EDITS = (
    ("orders", "sagas.py", "slot.week, order.total", "slot.weeks, order.total"),
    ("production", "service.py", "        paid.invoice_id,\n", "        paid.invoice,\n"),
)
PARTS = tuple(service for service, _, _, _ in EDITS)


def write_bugs(folder: Path) -> None:
    """Write the releases with a bug.

    Raises:
        LookupError: a service is not what it was when its bug was made up.
    """
    for service, module, right, wrong in EDITS:
        _edit(folder / SERVICES / service / module, right, wrong)


def write_mends(folder: Path) -> None:
    """Write the releases without it, after those with it."""
    for service, module, right, wrong in EDITS:
        _edit(folder / SERVICES / service / module, wrong, right)


def _edit(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    if text.count(before) != 1:
        raise LookupError(f"{path} has {before.strip()!r} {text.count(before)} times, not once")
    path.write_text(text.replace(before, after))
