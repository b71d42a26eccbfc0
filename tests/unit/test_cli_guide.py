"""`synchromesh guide`: every row leads somewhere, and words find what they are about."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli_runs import runner
from pages import ROOT
from synchromesh.cli.guide import GUIDE, Symptom

SYMPTOMS = [each for symptoms in GUIDE.values() for each in symptoms]


@pytest.mark.parametrize("symptom", SYMPTOMS, ids=lambda each: each.page)
def test_each_row_leads_to_a_page(symptom: Symptom) -> None:
    """Its page is there; commands are tested on the page that is made of the guide."""
    assert (ROOT / "docs" / symptom.page).is_file()


def test_no_two_rows_say_the_same() -> None:
    """Each thing that people see is there once."""
    assert len({each.seen for each in SYMPTOMS}) == len(SYMPTOMS)


def test_words_find_what_they_are_about(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """All of them, in any order and case; without words all there is; no match is a mistake."""
    run = runner(capsys)
    twice = run(tmp_path, "guide", "TWICE", "charged")
    assert twice.code == 0
    assert "inbox (docs/patterns/database-per-service.md)" in twice.out
    assert twice.out.count("    look     ") == 1
    assert run(tmp_path, "guide").out.count("    look     ") == len(SYMPTOMS)
    nothing = run(tmp_path, "guide", "teapot")
    assert (nothing.code, nothing.out) == (2, "")
    assert "the guide has nothing with 'teapot'; try fewer words" in nothing.err
    (found,) = json.loads(run(tmp_path, "guide", "stuck", "decide", "--json").out).values()
    assert found[0]["page"] == "stuck-saga.md"
