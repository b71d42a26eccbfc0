"""`drill` and `blast` on a small system: the page, the check, and what was seen of its calls."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from cli_runs import Run, runner
from notes_app import Running
from synchromesh.drill.course import DrillPace
from synchromesh.drill.live import LiveDrill

CODE = """
from typing import Protocol

from synchromesh import Context, Contract, Gateway, Route, Service, Static, query


class Back(Contract, Protocol, service="back", version="1.0"):
    @query("GET /back")
    async def ask(self) -> int: ...


class Front(Contract, Protocol, service="front", version="1.0"):
    @query("GET /front")
    async def ask(self) -> int: ...


back, front = Service("back", implements=Back), Service("front", implements=Front)


@back.handles(Back.ask)
async def ask_back(ctx: Context) -> int:
    return 1


@front.handles(Front.ask)
async def ask_front(ctx: Context) -> int:
    return await ctx.call(Back.ask())


gateway = Gateway(
    routes=[
        Route("GET /front", Front.ask, public=True),
        Route("GET /back", Back.ask, public=True, fallback=Static(0)),
    ]
)
"""
TOML = """
[system]
name = "two"

[services.back]
app = "drilled_two:back"

[services.front]
app = "drilled_two:front"

[gateway]
app = "drilled_two:gateway"
"""
PROBES = '[[probe]]\nroute = "GET /front"\n\n[[probe]]\nroute = "GET /back"\n'


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in a folder, in this process."""
    return runner(capsys)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a system of two services, one of which calls the other."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "drilled_two.py").write_text(CODE)
    (tmp_path / "synchromesh.toml").write_text(TOML)
    (tmp_path / "probes.toml").write_text(PROBES)
    return tmp_path


def test_a_drill_writes_a_page_and_checks_it(run: Run, folder: Path) -> None:
    """What is touched is written; the page is then what is seen, until somebody changes it."""
    chosen = ("--part", "back", "--way", "failing")
    wrote = run(folder, "drill", *chosen)
    page = folder / "degradation.md"
    assert (wrote.code, "back failing" in wrote.out) == (0, True)
    text = page.read_text()
    assert "| `GET /front` | 502 downstream_failed" in text
    assert "| `GET /back` | static, remote_failed" in text
    checked = run(folder, "drill", "--check", *chosen)
    assert (checked.code, "is what was seen, in 1 columns" in checked.out) == (0, True)
    page.write_text(text.replace("static, remote_failed", "fresh"))
    differs = run(folder, "drill", "--check", *chosen)
    assert differs.code == 1
    assert "back failing, GET /back: fresh" in differs.out
    assert not (folder / ".synchromesh").exists()
    assert logging.root.manager.disable == logging.NOTSET


def test_a_live_drill_breaks_the_system_that_runs_and_heals_it(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its clients are answered meanwhile is written, and no fault is left in force."""
    pace = DrillPace(off_s=2.0, answered_s=1.0, settled_s=1.0, ends_s=0.0)
    monkeypatch.setattr(LiveDrill.__init__, "__kwdefaults__", {"pace": pace})
    chosen = ("--part", "back", "--way", "failing")
    with Running(folder):
        ran = run(folder, "drill", "--live", *chosen, "--json")
        assert ran.code == 0, ran.err
        (column,) = json.loads(ran.out)["columns"]
        assert (column["part"], column["way"]) == ("back", "failing")
        assert json.loads(run(folder, "status", "--json").out)["faults"]["in_force"] == []
        acts = json.loads(run(folder, "status", "--json").out)["acts"]
        assert {(each["what"], each["target"]) for each in acts} == {
            ("break", "back"), ("heal", "back"),
        }  # fmt: skip
    live = (folder / "degradation.md").read_text()
    assert "| `GET /front` | 502 downstream_failed" in live
    assert "| `GET /back` | static, remote_failed" in live


def test_advise_tells_of_contracts_that_are_not_as_they_were_frozen(run: Run, folder: Path) -> None:
    """Of what breaks those who were released with them; what was frozen today is no advice."""

    def drift() -> list[str]:
        found = json.loads(run(folder, "advise", "--json").out)["advice"]
        return [each["what"] for each in found if each["code"] == "contract-drift"]

    assert run(folder, "contract", "freeze").code == 0
    assert drift() == []
    (frozen,) = (folder / "contracts" / "released").glob("back*")
    frozen.write_text(frozen.read_text().replace("/back", "/behind"))
    (said,) = drift()
    assert "is GET /back, and was GET /behind" in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--part", "bakc"), "did you mean 'back'?"),
        (("--way", "burnt"), "nothing is called 'burnt' in this drill"),
        (("--part", "registry", "--way", "failing"), "registry is never failing in this drill"),
        (("--part", "gateway", "--way", "stalled", "--check"), "in this drill, but killed"),
        (("--live",), "synchromesh dev"),
    ],
)
def test_a_wrong_part_or_way_is_a_mistake_of_the_user(
    run: Run, folder: Path, words: tuple[str, ...], told: str
) -> None:
    """Exit code 2, what there is, and nothing written."""
    ran = run(folder, "drill", *words)
    assert (ran.code, told in ran.err) == (2, True)
    assert not (folder / "degradation.md").exists()


def test_without_probes_a_drill_says_what_to_write(run: Run, folder: Path) -> None:
    """And where."""
    (folder / "probes.toml").unlink()
    ran = run(folder, "drill")
    assert (ran.code, "probes.toml cannot be read" in ran.err) == (2, True)


def test_blast_tells_what_is_declared_from_what_was_observed(run: Run, folder: Path) -> None:
    """Before anything ran the calls of handlers are unknown, and that is said."""
    told = json.loads(run(folder, "blast", "back", "--json").out)
    assert [(hit["what"], hit["effect"], hit["by"]) for hit in told["hits"]] == [
        ("GET /back", "degrades", "declared")
    ]
    assert told["unknown"][0].startswith("no call was observed")
    with Running(folder):
        assert run(folder, "call", "front.ask", "--json").code == 0
        running = run(folder, "blast", "back")
    stopped = run(folder, "blast", "back")
    for ran in (running, stopped):
        assert ran.code == 0
        told_why = "front.ask calls back.ask, seen once"
        assert f"GET /front  stops or degrades  observed  {told_why}" in ran.out
    assert "as always: GET /back" in run(folder, "blast", "front").out
    unknown = run(folder, "blast", "bakc")
    assert (unknown.code, "did you mean 'back'?" in unknown.err) == (2, True)
    toml = folder / "synchromesh.toml"
    toml.write_text(toml.read_text().replace("[system]\n", '[system]\njoined = ["till"]\n'))
    assert run(folder, "blast", "till").code == 0
