"""The end of the duties of a replica: nothing in it takes the end of the process with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping

from synchromesh.store.owners import SharedOwners
from synchromesh.store.ownership import View
from synchromesh.testing import SimRuntime, run


class Book:
    """That of a database with one duty, which nobody owns."""

    fence_sql = ""

    def __init__(self) -> None:
        self.told: list[str] = []

    async def renew(self, replica: str, able: Collection[str]) -> View:
        return View({replica: frozenset(able)}, {"relay": ("", 0)})

    async def claim(self, _: str, duties: Collection[str]) -> dict[str, int]:
        return dict.fromkeys(duties, 1)

    async def give_back(self, _: str, duties: Mapping[str, int]) -> None:
        self.told += duties

    async def leave(self, replica: str) -> None:
        self.told.append(f"{replica} leaves")

    async def close(self) -> None:
        self.told.append("closed")


class Endless:
    """Does a duty, and does not stop."""

    def __init__(self) -> None:
        self.is_asked_to_stop = asyncio.Event()

    def gained(self, duties: Collection[str]) -> None:
        pass

    async def lost(self, _: Collection[str]) -> None:
        self.is_asked_to_stop.set()
        await asyncio.get_running_loop().create_future()


def listen(_: str, __: Callable[[], None]) -> Callable[[], None]:
    return lambda: None


def test_a_close_does_not_wait_for_what_does_not_stop() -> None:
    """A process has 10 s to end: its duties are given back, for what it still writes is refused."""

    async def main(_: SimRuntime) -> None:
        book, endless = Book(), Endless()
        owners = SharedOwners(book, "a", listen, renew_s=5.0)
        await owners.add(("relay",), endless)
        assert owners.owned == {"relay"}
        removing = asyncio.ensure_future(owners.remove(("relay",)))
        await endless.is_asked_to_stop.wait()
        began_s = asyncio.get_running_loop().time()
        await owners.close()
        assert asyncio.get_running_loop().time() - began_s <= 2.0
        assert book.told == ["a leaves", "closed"]
        await removing

    run(main)
