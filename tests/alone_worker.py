"""A process of an application that runs its sagas: `python alone_worker.py URL` says "ready".

Its saga packs an order once, though the function of that step comes more than once: the first time
it hangs after its commit, for whoever kills the process then.
"""

from __future__ import annotations

import asyncio
import sys
from typing import ClassVar

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from alone_world import Purchase
from synchromesh.alone import Alone, AloneOptions
from synchromesh.saga import Saga

OFTEN = AloneOptions(look_every_s=0.02)
shop = Alone("shop")


class Parcel(msgspec.Struct, frozen=True):
    order_id: str
    qty: int


async def note(session: AsyncSession, parcel: Parcel) -> str:
    session.add(Purchase(id=f"noted {parcel.order_id}", qty=parcel.qty))
    return parcel.order_id


class Pack:
    """A step that comes at least once, and has one effect."""

    sessions: async_sessionmaker[AsyncSession]
    hangs = False
    keys: ClassVar[list[str]] = []

    @classmethod
    async def pack(cls, key: str, order_id: str) -> str:
        cls.keys.append(key)
        async with cls.sessions.begin() as session, shop.unit(session) as unit:
            is_first = await unit.once(key, caller="pack")
            if is_first:
                session.add(Purchase(id=f"packed {order_id}", qty=1))
        if cls.hangs:
            print("packed", flush=True)
            await asyncio.Event().wait()
        return "first" if is_first else "again"


async def ship(session: AsyncSession, order_id: str) -> str:
    session.add(Purchase(id=f"shipped {order_id}", qty=1))
    return order_id


@shop.saga(Parcel, deadline="10m")
async def send(s: Saga, parcel: Parcel) -> str:
    order_id = await s.write(note, parcel)
    packed = await s.step(Pack.pack, order_id, timeout_s=60.0)
    await s.write(ship, order_id)
    return packed


async def main(url: str) -> None:
    Pack.hangs = True
    engine = create_async_engine(url.replace("postgresql:", "postgresql+asyncpg:"))
    Pack.sessions = async_sessionmaker(engine)
    async with shop.open(url, options=OFTEN) as store:
        print("ready", flush=True)
        await shop.run_sagas(store, Pack.sessions.begin)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
