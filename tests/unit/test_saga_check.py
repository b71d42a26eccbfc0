"""`synchromesh saga check` and `record`: what a change of saga code breaks, and histories."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace

from cli_runs import Run, runner
from synchromesh.codec import encode
from synchromesh.errors import ConfigError, SagaError, UnknownSaga
from synchromesh.runtime import RealRuntime
from synchromesh.saga.recorded import RecordedRun, records_of, row_of
from synchromesh.saga.samples import sample_run
from synchromesh.saga.seals import RunSeal
from synchromesh.saga.shards import shards_of
from synchromesh.saga.tables import Part
from synchromesh.saga.writing import write_all
from synchromesh.service import Service, schemas_of
from synchromesh.store import SqliteStores
from synchromesh.system.config.definitions import load_services
from synchromesh.system.config.histories import read_histories, write_histories
from synchromesh.system.config.reading import load_config
from synchromesh.system.config.rundir import RunDir
from synchromesh.system.control import old_code as old_code_module
from synchromesh.system.control.old_code import old_code
from synchromesh.system.control.saga_check import SagaCheck, check_sagas, record_runs
from synchromesh.telemetry import MemoryRing, Tracer

PLACE = Path("histories")
SHOP = """
from typing import Protocol
from msgspec import Struct
from synchromesh import Contract, Saga, Service, command

class Order(Struct):
    id: str
    customer: str
    qty: int = 1

class Paid(Struct):
    card: str

class Plant(Contract, Protocol, service="plant", version="1.0"):
    @command("POST /holds")
    async def reserve(self, order: str, qty: int) -> str: ...
    @command("POST /looks")
    async def look(self, order: str) -> str: ...
    @command("POST /releases")
    async def release(self, hold: str) -> None: ...

class Bank(Contract, Protocol, service="bank", version="1.0"):
    @command("POST /charges")
    async def charge(self, order: str, card: str) -> str: ...

shop = Service("shop")

@shop.saga(Order, name="sell", version=1, deadline="1h")
async def sell(s: Saga, order: Order) -> str:
    hold = await s.call(Plant.reserve(order.id, order.qty), undo=Plant.release)
    await s.sleep("1m")
    paid = await s.event(Paid, within="10m")
    card = "" if paid is None else paid.card
    return await s.call(Bank.charge(order.id, card), pivot=True)
"""
LOOKS_FIRST = "    await s.call(Plant.look(order.id))\n    hold = await s.call"
CHANGED = SHOP.replace("    hold = await s.call", LOOKS_FIRST)
NEW = SHOP + CHANGED[CHANGED.index("@shop.saga") :].replace("version=1", "version=2")
DIFFERS = "the code asks for plant.look#1 where plant.reserve#1"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


class Release:
    """The folder of a system, of which the code can be changed."""

    def __init__(self, folder: Path, module: str, text: str = SHOP) -> None:
        self.folder, self.module = folder, module
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "synchromesh.toml").write_text(
            f'[system]\nname = "shops"\n[services.shop]\napp = "{module}:shop"\n'
        )
        self.write(text)

    def write(self, text: str) -> None:
        (self.folder / f"{self.module}.py").write_text(text)
        sys.modules.pop(self.module, None)

    def service(self) -> Service:
        sys.modules.pop(self.module, None)
        (service,) = load_services(load_config(self.folder), self.folder)
        return service

    def sample(self) -> RecordedRun:
        service = self.service()
        found = sample_run("shop", service.sagas["sell"])
        assert found is not None
        return found

    def check(self, **more: Any) -> SagaCheck:
        sys.modules.pop(self.module, None)
        return asyncio.run(check_sagas(self.folder, PLACE, **more))

    def store(self, *runs: RecordedRun) -> None:
        """Put runs into the database of the stopped system."""

        async def main() -> None:
            rundir, runtime = RunDir(self.folder), RealRuntime()
            rundir.create()
            store = await SqliteStores(runtime, rundir.database).open(
                "shop", schemas_of(self.service()), tracer=Tracer("shop", runtime, MemoryRing())
            )
            fence = (await shards_of(store, cast("Any", None))).fence(())
            parts = [
                Part(replace(row_of(each), digest=each.id), 0, records_of(each), is_start=True)
                for each in runs
            ]
            shape = self.service().sagas["sell"].shape
            for part in parts:
                part.seal = RunSeal(shape.personal, shape.personal_result)
            await store.write(lambda unit: write_all(unit, parts, fence), name="runs")
            await store.close()

        asyncio.run(main())


@pytest.fixture
def release(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Release:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return Release(tmp_path / "shops", f"shop_{abs(hash(request.node.name))}")


def git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    subprocess.run(
        ["git", "-C", str(folder), *who, *words], check=True, capture_output=True, timeout=60
    )


def committed(release: Release) -> None:
    git(release.folder, "init", "-q", "-b", "main")
    git(release.folder, "add", "-A")
    git(release.folder, "commit", "-qm", "a release")


# -- runs and histories --------------------------------------------------------------------------


def test_runs_that_have_not_ended_are_replayed_and_nothing_else_happens(release: Release) -> None:
    """A stopped system's database says which runs would wait, by status, and for what."""
    whole = release.sample()
    runs = [
        replace(whole, id="A-1"),
        replace(whole, id="A-2", records=whole.records[:1]),
        replace(whole, id="A-3", records=[]),
        replace(whole, id="A-4", records=whole.records[:3], status="sleeping"),
    ]
    release.store(*runs)
    fits = release.check()
    assert fits.differences == []
    assert [(each.saga, each.runs, each.samples) for each in fits.sagas] == [("shop.sell", 4, 0)]
    before = RunDir(release.folder).database("shop")
    data = Path(before).read_bytes()
    release.write(CHANGED)
    (differs,) = release.check().differences
    assert (differs.saga, differs.version, differs.before) == ("shop.sell", 1, "")
    assert DIFFERS in differs.differs
    assert (sum(differs.runs.values()), sorted(differs.ids)) == (3, ["A-1", "A-2", "A-4"])
    assert Path(before).read_bytes() == data
    release.write(NEW)
    assert release.check().differences == []


def test_histories_are_written_once_for_each_way_and_replayed(release: Release) -> None:
    """Files have names that say what is in them; a way that is there is not written again."""
    whole = release.sample()
    ended = replace(
        whole, id="A-1", status="completed",
        records=[*whole.records, replace(whole.records[-1], kind="ended", step="", digest="")],
    )  # fmt: skip
    release.store(ended, replace(ended, id="A-2"))
    folder = release.folder
    assert asyncio.run(record_runs(folder, PLACE)) == ["shop.sell.v1.completed.json"]
    text = (folder / PLACE / "shop.sell.v1.completed.json").read_text()
    assert text.count("\n") > 20, "lines that a review can compare"
    assert asyncio.run(record_runs(folder, PLACE)) == []
    with pytest.raises(UnknownSaga, match="A-7"):
        asyncio.run(record_runs(folder, PLACE, ["A-7"]))
    assert [each.histories for each in release.check().sagas] == [1]
    release.write(SHOP.replace("order.qty)", "order.qty + 1)"))
    (differs,) = release.check().differences
    assert differs.histories == ["shop.sell.v1.completed.json"]
    assert "plant.reserve#1 is recorded with other arguments" in differs.differs
    with pytest.raises(SagaError, match="does not fit this code"):
        asyncio.run(record_runs(folder, Path("elsewhere")))


def test_masked_fields_are_nowhere_and_the_history_is_followed_all_the_same(
    release: Release,
) -> None:
    """What tells the arguments is made of what is left."""
    whole = release.sample()
    secret = replace(
        whole,
        id="A-1",
        status="completed",
        input=type(whole.input)(b'{"id":"A-1","customer":"Ada Lovelace","qty":3}'),
    )
    service = release.service()
    from synchromesh.saga.recorded import masked

    definition = service.sagas["sell"]
    plain = masked(secret, ["nothing"], definition)  # its arguments are told anew
    told = json.loads(encode(plain).replace(b'[{\\"card\\":\\"sample\\"}]', b"x"))
    assert told["input"]["customer"] == "Ada Lovelace"
    for each in told["records"]:
        if each["kind"] == "woken" and each["body"]:
            each["body"] = [{"card": "4111 1111"}]
    run = masked(RecordedRun(**{**told, "input": plain.input, "records": plain.records}),
                 ["customer", "card"], definition)  # fmt: skip
    text = encode(run).decode()
    assert "Ada" not in text
    assert "4111" not in text
    assert '"customer":"masked"' in text
    (release.folder / PLACE).mkdir()
    assert write_histories(release.folder / PLACE, [run])
    assert release.check().differences == []


def test_nothing_personal_gets_into_a_history(release: Release) -> None:
    """What is sealed at rest stays so: neither the value nor what is sealed is in the file."""
    imports = "from synchromesh.personal import Personal, Subject\nfrom synchromesh import"
    personal = SHOP.replace("from synchromesh import", imports, 1)
    release.write(personal.replace("id: str", "id: Subject", 1).replace(
        "customer: str", "customer: Personal[str]"
    ))  # fmt: skip
    whole = release.sample()
    given = type(whole.input)(b'{"id":"sample","customer":"Ada Lovelace","qty":1}')
    release.store(replace(whole, id="A-1", input=given))
    database = Path(RunDir(release.folder).database("shop"))
    assert b"Ada Lovelace" not in database.read_bytes(), "it is sealed"
    (name,) = asyncio.run(record_runs(release.folder, PLACE, ["A-1"]))
    text = (release.folder / PLACE / name).read_text()
    assert "Lovelace" not in text
    assert "sealed" not in text
    assert release.check().differences == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no history of a saga"),
        ('{"format": 9}', "has format 9, and this release reads up to 1; upgrade"),
        ('{"format": 1}', "is no history of a saga"),
        ("\x00\xff", "is no history of a saga"),
    ],
)
def test_a_damaged_history_is_named(tmp_path: Path, text: str, said: str) -> None:
    """It is taken from version control, not passed over."""
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"a\.json"):
        read_histories(tmp_path)
    with pytest.raises(ConfigError) as told:
        read_histories(tmp_path)
    assert said in told.value.message


def test_a_record_of_a_newer_release_is_told_as_such(release: Release) -> None:
    """A kind that this release does not know differs; it is no mistake of the file."""
    run = release.sample()
    odd = replace(run, records=[replace(run.records[0], kind="vanished")])
    (release.folder / PLACE).mkdir()
    write_histories(release.folder / PLACE, [odd])
    (differs,) = release.check().differences
    assert "of the kind 'vanished', which this release does not know" in differs.differs


# -- against other code --------------------------------------------------------------------------


def test_a_change_is_checked_against_a_revision_as_in_continuous_integration(
    release: Release, run: Run
) -> None:
    """Exit 1 with the first step that differs; the old code beside the new one is exit 0."""
    committed(release)
    folder = release.folder
    release.write(CHANGED)
    ran = run(folder, "saga", "check", "--against", "HEAD", "--json")
    (differs,) = json.loads(ran.out)["differences"]
    assert ran.code == 1
    assert DIFFERS in differs["differs"]
    assert (differs["is_sampled"], differs["before"]) == (True, "yes")
    release.write(NEW)
    ran = run(folder, "saga", "check", "--against", "main")
    assert (ran.code, ran.out) == (0, "shop.sell: 1 made-up run goes on with this code\n")
    git(folder, "commit", "-qam", "both versions")
    release.write(NEW[: NEW.index("@shop.saga")] + NEW[NEW.rindex("@shop.saga") :])
    ran = run(folder, "saga", "check", "--against", "main")
    assert ran.code == 0
    assert "shop.sell v1: is gone, as it should be once none of its runs is left" in ran.out


def test_the_code_of_a_folder_and_its_histories_count(release: Release, tmp_path: Path) -> None:
    """Histories of the release before are replayed though they were taken away here."""
    old = Release(tmp_path / "old", release.module)
    run = old.sample()
    write_histories(old.folder / PLACE, [run])
    release.write(CHANGED)
    with old_code(release.folder, str(old.folder)) as found:
        (differs,) = release.check(old=found).differences
    assert differs.histories == [f"shop.sell.v1.running.json of {old.folder}"]
    assert differs.is_sampled
    release.write(SHOP.replace('name="sell"', 'name="vend"'))
    with old_code(release.folder, str(old.folder)) as found:
        assert release.check(old=found, gone=["shop.sell"]).gone == ["shop.sell v1"]


@pytest.mark.parametrize(
    "revision",
    [
        "no-such-branch",
        "--output=pwned",
        "-h",
        "$(touch pwned)",
        "; touch pwned",
        "`touch pwned`",
        "HEAD:shop.py",
        "HEAD^{tree}",
        "HEAD..HEAD",
        "@{upstream}",
        "\n",
        " ",
        "a\0b",
        "../..",
        "ä" * 300,
    ],
)
def test_what_is_no_revision_is_one_message(release: Release, revision: str) -> None:
    """It reaches git as one argument behind the end of the options, and no shell."""
    committed(release)
    before = sorted(path.name for path in release.folder.iterdir())
    with (
        pytest.raises(ConfigError, match=r"--against .* (a revision|nor a revision)"),
        old_code(release.folder, revision),
    ):
        raise AssertionError("it was taken")
    assert sorted(path.name for path in release.folder.iterdir()) == before


def test_no_git_and_no_repository_are_said(
    release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each message names what to do instead."""
    with (
        pytest.raises(ConfigError, match=r"is in no git repository that can be read .*give the fo"),
        old_code(release.folder, "main"),
    ):
        raise AssertionError("it was taken")
    monkeypatch.setenv("PATH", str(release.folder))
    with (
        pytest.raises(ConfigError, match="git is not installed; install it, or give the folder"),
        old_code(release.folder, "main"),
    ):
        raise AssertionError("it was taken")


def test_a_folder_that_was_not_there_then_is_said(release: Release, tmp_path: Path) -> None:
    """The system may have been elsewhere in the repository, or not have been one."""
    (tmp_path / "readme").write_text("x")
    git(tmp_path, "init", "-q", "-b", "main")
    git(tmp_path, "add", "readme")
    git(tmp_path, "commit", "-qm", "before the system")
    with (
        pytest.raises(ConfigError, match="this folder, shops/, cannot be read there"),
        old_code(release.folder, "main"),
    ):
        raise AssertionError("it was taken")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "the system")
    with old_code(release.folder, "main") as found:
        assert found.ask([]).newest == {"shop.sell": 1}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def broken(:\n", r"the code of .*old cannot be loaded by this Python 3\.\d+: .*Syntax"),
        (
            "import os; print('noise', flush=True); os._exit(3)\n",
            "it ended this Python with exit code 3",
        ),
    ],
)
def test_old_code_that_cannot_be_loaded_is_one_message(
    release: Release, tmp_path: Path, text: str, said: str
) -> None:
    """Of another Python, or another environment: what is wrong and in which file."""
    old = Release(tmp_path / "old", release.module, text)
    with (
        old_code(release.folder, str(old.folder)) as found,
        pytest.raises(ConfigError, match=said) as told,
    ):
        found.ask([])
    assert "Traceback" not in told.value.message


def test_old_code_that_never_ends_is_given_up(
    release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is imported may wait for something; the check does not wait for ever."""
    monkeypatch.setattr(old_code_module, "_WITHIN_S", 1.0)
    waits = "import threading\nthreading.Event().wait()\n"
    old = Release(tmp_path / "old", release.module, waits)
    began_s = time.monotonic()
    with (
        old_code(release.folder, str(old.folder)) as found,
        pytest.raises(ConfigError, match="did not come to an end within 1 s"),
    ):
        found.ask([])
    assert time.monotonic() - began_s < 60.0
