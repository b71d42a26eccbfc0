"""A restart of replicas that nobody supervises: one by one, each once its successor is there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from synchromesh.discovery import Endpoint
from synchromesh.discovery.entries import InstanceEntry
from synchromesh.errors import ConnectFailed, TimedOut, UnknownOperation
from synchromesh.http import HttpPool
from synchromesh.runtime import RealRuntime
from synchromesh.system.control.operator import Operator
from synchromesh.system.control.replicas import Asking, Replica
from synchromesh.system.control.successors import Followed, RestartReport, restart_replicas

pytestmark = pytest.mark.anyio

FACTS = (("pid", "7@here"), ("admin", "http://127.0.0.1:1"))


class Registered:
    """Who is registered, and who comes when one has ended.

    Attributes:
        asked: those that were asked to end.
        comes: whether a successor comes, under which name.
    """

    def __init__(self, *instances: str) -> None:
        self.entries = {each: self.entry(each) for each in instances}
        self.asked: list[str] = []
        self.comes: dict[str, str] = {each: each for each in instances}
        self.fails: dict[str, Exception] = {}
        self.event = asyncio.Event()
        pool = HttpPool(network=RealRuntime().network)
        self.asking = Asking(Operator(b"0" * 32, "ada", lambda: 0), pool, "here")
        self.notes: list[Followed] = []

    def entry(self, instance: str, holder: str = "", **more: Any) -> InstanceEntry:
        service = instance.partition("#")[0]
        endpoint = Endpoint(instance, service, "http://127.0.0.1:2", FACTS)
        return InstanceEntry(endpoint, holder or instance, 1, **more)

    def find(self) -> list[Replica]:
        found = [_Played(self.entries[name], self.asking, self) for name in sorted(self.entries)]
        return list(found)

    async def changed(self) -> None:
        await self.event.wait()
        self.event.clear()

    def ended(self, instance: str) -> None:
        self.asked.append(instance)
        if instance in self.fails:
            raise self.fails[instance]
        del self.entries[instance]
        if name := self.comes.get(instance):
            asyncio.get_running_loop().call_soon(self._come, name)

    def _come(self, name: str) -> None:
        self.entries[name] = self.entry(name, f"{name} anew")
        self.event.set()

    async def restart(self, name: str) -> RestartReport:
        return await restart_replicas(
            self.find, self.changed, name, within_s=0.05, note=self.notes.append
        )


class _Played(Replica):
    def __init__(self, entry: InstanceEntry, asking: Asking, world: Registered) -> None:
        super().__init__(entry, asking)
        self._world = world

    async def ask(self, method: str, target: str, *_: Any, **__: Any) -> Any:
        assert (method, target) == ("POST", "/drain")
        self._world.ended(self.instance)


async def test_each_is_asked_once_the_one_before_is_followed() -> None:
    """By one of its name, or of another: in a container it has another one."""
    world = Registered("a#1@x", "a#1@y", "b#1@x")
    world.comes["a#1@x"] = "a#1@z"
    report = await world.restart("a")
    told = [(each.instance, each.by) for each in report.followed]
    assert told == [("a#1@x", "a#1@z"), ("a#1@y", "a#1@y")]
    assert (report.stopped, report.left, world.notes) == ("", [], report.followed)
    assert world.asked == ["a#1@x", "a#1@y"]


async def test_it_stops_where_no_successor_comes() -> None:
    """The next one is not asked, and is named."""
    world = Registered("a#1@x", "a#2@x")
    world.comes.clear()
    report = await world.restart("a")
    assert (world.asked, report.followed, report.left) == (["a#1@x"], [], ["a#2@x"])
    assert "no successor of it has registered within 0.05 s" in report.stopped


async def test_the_last_that_takes_calls_is_left() -> None:
    """While others of its service take none; one that takes none itself may be restarted."""
    world = Registered("a#1@x", "a#2@x")
    world.entries["a#2@x"] = world.entry("a#2@x", is_draining=True)
    report = await world.restart("a#1@x")
    assert (world.asked, report.left) == ([], ["a#1@x"])
    assert "a#1@x is the only one that takes calls, and a#2@x takes none" in report.stopped
    assert (await world.restart("a#2/relay/b")).stopped == ""


async def test_one_that_is_not_reached_is_told() -> None:
    """Nothing was done to it then; where it has not answered, that is not known."""
    world = Registered("a#1@x", "a#2@x")
    world.fails["a#1@x"] = ConnectFailed("refused")
    report = await world.restart("a")
    assert (report.left, "was not reached: refused" in report.stopped) == (["a#1@x", "a#2@x"], True)
    world.fails["a#1@x"] = TimedOut("too late")
    report = await world.restart("a")
    assert (report.left, "has not ended: too late" in report.stopped) == (["a#2@x"], True)


async def test_nothing_is_restarted_where_one_cannot_be_asked_from_here() -> None:
    """Or where none has that name."""
    world = Registered("a#1@x", "a#2@x")
    endpoint = Endpoint("a#2@x", "a", "http://127.0.0.1:2", (("pid", "7@far"), *FACTS[1:]))
    world.entries["a#2@x"] = InstanceEntry(endpoint, "far")
    with pytest.raises(ConnectFailed, match="nothing was restarted: a#2@x: its admin listener"):
        await world.restart("a")
    with pytest.raises(UnknownOperation, match="no replica is called 'c'; there are a, a#1@x"):
        await world.restart("c")
    assert world.asked == []
