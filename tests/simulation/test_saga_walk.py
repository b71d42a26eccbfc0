"""The failures of a saga that the documentation tells are those that are seen."""

from __future__ import annotations

import saga_walk


def test_the_tables_are_of_today() -> None:
    """Each row is a run; where this fails, and should, run `python tests/saga_walk.py`."""
    text = saga_walk.PAGE.read_text()
    assert saga_walk.page(text) == text
    assert text.count("\n| ") > len(saga_walk.FATES) + len(saga_walk.WAITS) + 20


def test_every_way_to_end_is_walked() -> None:
    """A run that is completed, undone and stuck; a caller that is told each; an unknown of both."""
    text = saga_walk.PAGE.read_text()
    told = text.partition("<!-- walk -->")[2]
    for word in ("| completed |", "| undone |", "| stuck |", "the rejection", "`saga_undone`"):
        assert word in told
    for word in ("`saga_stuck`", "key barred", "key given up", "many attempts", "by a person"):
        assert word in told
