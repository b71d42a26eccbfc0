"""The pictures of the documentation are drawn by the scripts that are committed, from the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from scripts import cascade_picture
from scripts.breaker_picture import FAILS_FROM_S, FAILS_UNTIL_S, live
from scripts.growth_picture import PANELS, points
from scripts.machine_pictures import machines
from scripts.pictures import FOLDER, pictures
from scripts.system_map import PLACES, Edge, contracts, edges

BYTES_MAX = 32_000
DRAWN = pictures()


@pytest.mark.parametrize("path", DRAWN, ids=lambda path: path.name)
def test_a_picture_is_of_today(path: Path) -> None:
    """It is what its script draws now; where this fails, run `make pictures`."""
    assert path.read_text() == DRAWN[path]


def test_the_table_of_the_cascade_is_of_the_results() -> None:
    """It is what its script makes of them now; where this fails, run `make pictures`."""
    text = cascade_picture.PAGE.read_text()
    assert cascade_picture.page(text) == text


@pytest.mark.parametrize("path", DRAWN, ids=lambda path: path.name)
def test_a_picture_is_light_and_needs_nothing_from_elsewhere(path: Path) -> None:
    """A few kilobytes, no script, and no address but the namespace's."""
    text = path.read_text()
    assert len(text) <= BYTES_MAX
    assert "<script" not in text
    assert set(re.findall(r"https?://(?!127\.0\.0\.1)[^\"'\s<]+", text)) == {
        "http://www.w3.org/2000/svg"
    }


def test_the_map_has_every_part_and_what_the_code_says() -> None:
    """Each service of servo-works has a place; calls and subscriptions are told apart."""
    known = contracts()
    drawn = edges(known)
    assert {*known.service_of.values(), "gateway"} == set(PLACES)
    assert {"credit_provider"} == known.external
    assert Edge("orders", "billing", is_event=False) in drawn
    assert Edge("orders", "configurator", is_event=True) in drawn
    assert Edge("configurator", "orders", is_event=False) not in drawn


@pytest.mark.parametrize("name", machines())
def test_the_picture_of_a_machine_has_all_that_its_table_has(name: str) -> None:
    """Every state has a box, every event its words, and no box is of a state that is gone."""
    machine, drawn = machines()[name], DRAWN[FOLDER / f"{name}.svg"]
    states = {each for arrow in machine.arrows for each in (arrow.before, arrow.after)}
    assert set(machine.places) == states
    assert set(machine.colours) <= states
    for said in states | {arrow.words for arrow in machine.arrows}:
        assert said in drawn


def test_growth_is_drawn_of_every_size_that_was_measured() -> None:
    """A figure that the results lack is named, with what makes it."""
    for panel in PANELS:
        for curve in panel.curves:
            sizes = [size for size, _ in points(panel.area, curve.figure)]
            assert sizes[0] < sizes[-1] / 99
    with pytest.raises(ValueError, match=r"saga_growth.json has no 'naps': run python -m"):
        points("saga_growth", "naps")


def test_the_breaker_of_the_picture_trips_probes_and_recovers() -> None:
    """It opens only while the callee fails, refuses most calls then, and closes after it works."""
    told, transitions = live()
    states = [each.after.value for each in transitions]
    assert states[0] == "open"
    assert states[-2:] == ["half_open", "closed"]
    assert states[1:-2] == ["half_open", "open"] * ((len(states) - 3) // 2)
    assert FAILS_FROM_S < transitions[0].at_s < FAILS_UNTIL_S <= transitions[-1].at_s
    refused = [call for call in told if call.outcome == "refused"]
    assert all(FAILS_FROM_S < call.at_s < transitions[-1].at_s for call in refused)
    assert len(refused) > len([call for call in told if call.outcome == "failed"]) / 2
