"""`System`: what starts is stopped, whole, in every order of events."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from notes_app import STAYS, TOML, Notes, Running, write_config
from processes import COMMAND, children_of
from synchromesh.cli import main
from synchromesh.discovery import Registration
from synchromesh.errors import ConfigError, Shed
from synchromesh.runtime import RealRuntime
from synchromesh.service import Deps, Service, ServiceInstance
from synchromesh.system import System, load_config
from synchromesh.system.supervise.external import ExternalProcess
from synchromesh.system.supervise.stop_budget import StopBudget

pytestmark = pytest.mark.anyio

# What a server may take to end handlers that it has cancelled.
CANCEL_S = 1.0
WAIT_S = 90.0
BROKEN = '[services.broken]\napp = "notes_app:broken"\n'


def system_of(folder: Path, text: str = TOML) -> System:
    """Return the system of a folder."""
    return System(load_config(write_config(folder, text)), folder, RealRuntime())


async def test_a_child_that_dies_is_started_again_at_its_new_place(tmp_path: Path) -> None:
    """Calls go to where it is now; the failure is logged."""
    system = system_of(tmp_path, TOML + STAYS)
    await system.start()
    (before,) = children_of(os.getpid())
    os.kill(before, signal.SIGKILL)
    async with asyncio.timeout(10.0):
        while (now := children_of(os.getpid())) in ([], [before]):
            await asyncio.sleep(0.01)
    await system.stop()
    assert now != [before]
    log = (tmp_path / ".synchromesh/telemetry/log.jsonl").read_text()
    assert "external service 'provider' ended by SIGKILL" in log


async def test_a_start_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    """Cancelled at any of its first awaits, it stops what it started."""
    before = asyncio.all_tasks()
    for awaits in (1, 5, 20, 40):
        system = system_of(tmp_path, TOML + STAYS)
        starting = asyncio.ensure_future(system.start())
        for _ in range(awaits):
            await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert children_of(os.getpid()) == []
        assert not (tmp_path / ".synchromesh/run.json").exists()
        assert asyncio.all_tasks() == before


async def test_a_call_that_comes_before_its_service_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is called while all start, as by a saga that is recovered, waits until it is up."""
    text = TOML.replace("[services.notes]", BROKEN + "\n[services.notes]")
    start, asked = ServiceInstance.start, list[asyncio.Task[int]]()

    async def starting(service: Service, deps: Deps, *, name: str) -> ServiceInstance:
        instance = await start(service, deps, name=name)
        if service.name == "broken":
            caller = instance.caller
            context = caller.root(timeout_s=WAIT_S)
            asked.append(asyncio.ensure_future(caller.call(Notes.count(), context=context)))
            while not (caller.holds.held or asked[0].done()):
                await asyncio.sleep(0)
        return instance

    monkeypatch.setattr(ServiceInstance, "start", starting)
    system = system_of(tmp_path, text)
    await system.start()
    try:
        assert await asked[0] == 0
        assert system.instances["broken"].caller.holds.bridged == 1
    finally:
        await system.stop()


async def test_stopping_goes_from_the_outside_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An instance leaves the registry before its dispatcher drains, and ends its lease last."""
    steps: list[str] = []

    def noting(cls: type, name: str) -> None:
        wrapped = getattr(cls, name)

        async def note(self: object, *args: object) -> object:
            steps.append(f"{cls.__name__}.{name}")
            return await wrapped(self, *args)

        monkeypatch.setattr(cls, name, note)

    for cls, name in (
        (Registration, "drain"),
        (Registration, "end"),
        (ServiceInstance, "drain"),
        (ServiceInstance, "stop"),
        (ExternalProcess, "stop"),
    ):
        noting(cls, name)
    system = system_of(tmp_path, TOML + STAYS)
    await system.start()
    await system.stop()
    assert list(dict.fromkeys(steps)) == [
        "Registration.drain",
        "ServiceInstance.drain",
        "Registration.end",
        "ServiceInstance.stop",
        "ExternalProcess.stop",
    ]


async def test_a_call_under_way_is_answered_while_it_stops(tmp_path: Path) -> None:
    """What a client sent before the stop gets its answer; what runs too long is cut."""
    system = system_of(tmp_path)
    await system.start()
    instance = system.instances["notes"]
    info = system.info
    asking = await asyncio.create_subprocess_exec(
        *COMMAND,
        "--folder",
        str(tmp_path),
        "call",
        "notes.slow",
        "seconds=0.2",
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(10.0):
        while not instance.dispatcher.in_flight:
            await asyncio.sleep(0.01)
    stopping = asyncio.ensure_future(system.stop())
    await asyncio.sleep(0)
    await system.stop()
    assert stopping.done()
    out, _ = await asking.communicate()
    # The answer was given; the trace that is asked for next finds the system gone.
    assert (asking.returncode, out.decode().split()[0]) == (0, "null")
    assert info.pid == os.getpid()
    assert instance.dispatcher.is_draining


async def test_a_call_that_outlasts_the_stop_is_cut(tmp_path: Path) -> None:
    """The bounds of draining hold, and together they stay below 10 s."""
    whole = StopBudget()
    assert whole.gateway_s + whole.services_s + whole.external_s + CANCEL_S < 10.0
    config = load_config(write_config(tmp_path, TOML))
    budget = StopBudget(answer_s=0.01, drain_s=0.01)
    system = System(config, tmp_path, RealRuntime(), budget=budget)
    await system.start()
    instance = system.instances["notes"]
    asking = await asyncio.create_subprocess_exec(
        *COMMAND,
        "--folder",
        str(tmp_path),
        "call",
        "notes.slow",
        "seconds=200",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(10.0):
        while not instance.dispatcher.in_flight:
            await asyncio.sleep(0.01)
    async with asyncio.timeout(5.0):
        await system.stop()
    out, err = await asking.communicate()
    assert (asking.returncode, out) == (2, b"")
    assert b"the system does not answer" in err
    assert instance.dispatcher.in_flight == 0


async def test_a_system_may_be_stopped_twice_and_started_again(tmp_path: Path) -> None:
    """`stop` before, during and after a run is harmless; a second start meanwhile is refused."""
    system = system_of(tmp_path, TOML + '[dev]\nopening = "notes_app:opens"\n')
    await system.stop()
    for _ in range(2):
        await system.start()
        assert repr(system) == "<System notebook: notes>"
        with pytest.raises(ConfigError, match="runs already; stop it first"):
            await system.start()
        assert system.info.services["notes"].startswith("http://127.0.0.1:")
        rows = await system.instances["notes"].store.read("select id from note")
        assert rows == [("first",)]
        await system.stop()
        await system.stop()
    with pytest.raises(ConfigError, match="does not run; start it first"):
        _ = system.info
    assert repr(system) == "<System notebook: not started>"


async def test_one_failing_step_of_stopping_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is logged, and the files are given up all the same."""

    async def fails(_: Registration) -> None:
        raise Shed("the registry does not answer")

    monkeypatch.setattr(Registration, "drain", fails)
    system = system_of(tmp_path)
    await system.start()
    await system.stop()
    log = (tmp_path / ".synchromesh/telemetry/log.jsonl").read_text()
    assert "a step of stopping failed" in log
    await system.start()
    await system.stop()


async def test_an_external_service_may_run_elsewhere(tmp_path: Path) -> None:
    """Where it has a URL nothing is started for it; an edge to it may have a policy."""
    text = (
        TOML
        + '[external.bank]\nurl = "http://127.0.0.1:9"\n'
        + '[policies."notes:bank"]\ntimeout = "100ms"\n'
    )
    system = system_of(tmp_path, text)
    await system.start()
    assert system.info.services["bank"] == "http://127.0.0.1:9"
    assert children_of(os.getpid()) == []
    await system.stop()


def test_uvloop_is_an_extra(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where it is asked for and not installed, the message is the command that installs it."""
    folder = write_config(tmp_path, TOML.replace('"notebook"', '"x"\nloop = "uvloop"'))
    with pytest.MonkeyPatch.context() as patch:
        # As it is where the package is not installed.
        patch.setitem(sys.modules, "uvloop", None)
        with pytest.raises(SystemExit, match="2"):
            main(["--folder", str(folder), "dev"])
    assert (
        capsys.readouterr().err
        == "synchromesh: [system] loop = \"uvloop\" needs the extra 'fast': "
        "pip install 'WHEEL[fast]', where WHEEL is the file, folder or name that Synchromesh was "
        "installed from\n"
    )
    assert not (folder / ".synchromesh").exists()


def test_the_installed_command_is_the_same(tmp_path: Path) -> None:
    """`synchromesh` is on the path of the environment, and says its version."""
    command = Path(sys.executable).with_name("synchromesh")
    asked = subprocess.run(
        [command, "--version"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert asked.stdout.startswith("synchromesh, version ")
    assert list(tmp_path.iterdir()) == []


def test_a_thread_may_run_a_system(tmp_path: Path) -> None:
    """Nothing of a system needs the main thread, but for the signals of `dev`."""
    with Running(write_config(tmp_path, TOML + STAYS)) as running:
        assert running.system.info.services["provider"] == "http://127.0.0.1:1"
    assert children_of(os.getpid()) == []
