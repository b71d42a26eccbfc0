"""The generations of projections: which are there, which is live, and what a person does with them.

A projection is built once or twice at a time: a *live* generation, which queries read, and beside
it a *standby*, which is being built, or was live before. Both follow the log, each with tables, a
checkpoint and skips of its own. Whatever a person does is recorded as an event, with who and why,
in the commit that does it.

Source: Fowler, "BlueGreenDeployment", 2010; Young, "CQRS Documents", 2010.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from synchromesh.codec import encode
from synchromesh.errors import BadRequest, ContractError, StatementFailed
from synchromesh.events.appending import NewEvent, append_each
from synchromesh.events.generation_tables import GenerationTables, table_of
from synchromesh.events.log import Checkpoint, executor, save_checkpoint
from synchromesh.store import Row, StoreReader, Unit, log_id_of

PREFIX = "projection/"
TOPIC = "projections"
"""The topic of what happens to projections beside the log."""

_LIST = (
    "select p.name, p.number, p.version, p.digest, p.tables, p.is_live, p.is_waiting, p.made_us, "
    "p.retries, p.parked, coalesce(c.position, 0), coalesce(c.log_id, ''), "
    "(select count(*) from sm_projection_skip s where s.name = p.name and s.number = p.number) "
    "from sm_projection p left join sm_checkpoint c on c.name = "
    f"case when p.number = 1 then '{PREFIX}' || p.name "
    f"else '{PREFIX}' || p.name || '#' || p.number end "
)
_OF = _LIST + "where p.name = ? order by p.is_live desc, p.number"
_ALL = _LIST + "order by p.name, p.is_live desc, p.number"


class Parked(msgspec.Struct, frozen=True):
    """Why a generation stands still until a person, or another release, frees it.

    Attributes:
        position: of the event that it cannot take; 0 where it is the log that cannot be read.
        is_poison: whether the event itself is the reason, so that it can be skipped.
        error: class and message.
    """

    position: int
    event_id: str
    name: str
    error: str
    since_us: int
    is_poison: bool = True

    @property
    def where(self) -> str:
        """The event in words."""
        return f"position {self.position} ({self.name})" if self.position else "the log"


class Generation(msgspec.Struct, frozen=True):
    """One generation of a projection.

    Attributes:
        number: tells it from those before.
        version: of the projection's definition that makes it.
        is_live: queries read it; otherwise it is the standby.
        is_waiting: this release has no definition of its version, so that it stands still.
        retries: how often a person had its parked event tried again.
        position: what it has reached.
        skipped: how many events it has left out.
    """

    name: str
    number: int
    version: int
    digest: str
    tables: tuple[str, ...]
    is_live: bool
    is_waiting: bool
    made_us: int
    retries: int
    parked: Parked | None
    position: int
    log_id: str
    skipped: int

    @property
    def checkpoint_name(self) -> str:
        """The name under which its checkpoint is saved."""
        return checkpoint_of(self.name, self.number)

    @property
    def key(self) -> tuple[int, int]:
        """What tells it from one of the same number that was dropped."""
        return self.number, self.made_us


def checkpoint_of(name: str, number: int = 1) -> str:
    """Return the name of a generation's checkpoint.

    Example:
        >>> checkpoint_of("demand"), checkpoint_of("demand", 2)
        ('projection/demand', 'projection/demand#2')
    """
    return f"{PREFIX}{name}" if number == 1 else f"{PREFIX}{name}#{number}"


async def list_generations(source: Unit | StoreReader, name: str = "") -> list[Generation]:
    """Return the generations of a projection, or of all; the live one first."""
    rows = await (executor(source)(_OF, name) if name else executor(source)(_ALL))
    return [_generation(row) for row in rows]


async def prepare(unit: Unit, name: str, versions: Mapping[int, GenerationTables]) -> None:
    """Bring a projection's generations in line with the definitions that this release has.

    The first generation is live at once. A new version gets a standby, which is built beside the
    live one. One whose version is not known here waits for the code.

    Raises:
        ContractError: the tables of a version are others than those it was built with, or another
            owner has a table of their name.
    """
    found = await list_generations(unit, name)
    log_id = await log_id_of(unit)
    for each in found:
        known = versions.get(each.version)
        if known is not None and known.digest != each.digest:
            raise ContractError(
                f"the tables of projection {name!r} have changed, and its version is still "
                f"{each.version}: raise version=, so that new ones are built beside them"
            )
        await unit.execute(
            "update sm_projection set is_waiting = ? where name = ? and number = ?",
            int(known is None),
            name,
            each.number,
        )
        if each.log_id != log_id:
            # It is in one file with its log, so that both were put back to the same moment.
            at = Checkpoint(log_id, each.position)
            await save_checkpoint(unit, each.checkpoint_name, at)
    newest = max(versions)
    if not found:
        await _make(unit, name, 1, newest, versions[newest], is_live=True)
    elif all(each.version != newest for each in found):
        for each in found[1:]:
            await _remove(unit, each)
        number = max(each.number for each in found) + 1
        await _make(unit, name, number, newest, versions[newest], is_live=False)
    unit.notify(TOPIC)


async def mark_unknown(unit: Unit, names: Iterable[str]) -> None:
    """Mark the generations of projections that this release has not, as they stand still."""
    known = set(names)
    for each in await list_generations(unit):
        if each.name not in known and not each.is_waiting:
            await unit.execute("update sm_projection set is_waiting = 1 where name = ?", each.name)


async def rebuild(
    unit: Unit,
    name: str,
    versions: Mapping[int, GenerationTables],
    *,
    by: Mapping[str, str],
    takes_skipped: bool = False,
    is_lossy: bool = False,
) -> Generation:
    """Make a new standby, which is built from the log's beginning; the one before is dropped.

    It leaves out what the live one has skipped, or with `takes_skipped` tries it anew.

    Raises:
        BadRequest: it has no tables of its own, or events were removed and `is_lossy` is not set.
    """
    live, *others = await _known(unit, name)
    version = max(versions)
    if not versions[version].names:
        raise BadRequest(
            f"projection {name!r} declares no tables, so that it cannot be built beside itself; "
            "give it tables=, and take them from the service's migrations"
        )
    removed = await unit.execute("select count(*), coalesce(max(last), 0) from sm_removal")
    if removed[0][0] and not is_lossy:
        raise BadRequest(
            f"events up to position {_int(removed[0][1])} were removed from the log, so that a "
            f"rebuild of {name!r} would lack them; say --without-removed if it needs none of them"
        )
    for each in others:
        await _remove(unit, each)
    number = max(each.number for each in (live, *others)) + 1
    await _make(unit, name, number, version, versions[version], is_live=False)
    if not takes_skipped:
        await unit.execute(
            "insert into sm_projection_skip(name, number, position) "
            "select name, ?, position from sm_projection_skip where name = ? and number = ?",
            number,
            name,
            live.number,
        )
    await _record(unit, "rebuilt", name, by, generation=number, version=version)
    return (await _known(unit, name))[-1]


async def switch(unit: Unit, name: str, *, by: Mapping[str, str]) -> Generation:
    """Make the standby live, and the live one the standby; it is the caller who knows it is even.

    Raises:
        BadRequest: there is no standby, or it is parked.
    """
    live, *others = await _known(unit, name)
    if not others:
        raise BadRequest(
            f"projection {name!r} has one generation, {live.number}, and it is live; make another "
            f"with: synchromesh projection rebuild {name} --why TEXT"
        )
    (standby,) = others
    if standby.parked is not None:
        raise BadRequest(
            f"generation {standby.number} of projection {name!r} is parked at "
            f"{standby.parked.where}: {standby.parked.error}; it is not made live as it is"
        )
    for table in live.tables:
        await unit.execute(f"drop view {table}")
    await _show(unit, name, standby.number, standby.tables)
    for each in (live, standby):
        await unit.execute(
            "update sm_projection set is_live = ? where name = ? and number = ?",
            int(each is standby),
            name,
            each.number,
        )
    await _record(unit, "switched", name, by, generation=standby.number, before=live.number)
    return standby


async def drop(unit: Unit, name: str, *, by: Mapping[str, str]) -> Generation:
    """Drop the standby and its tables.

    Raises:
        BadRequest: there is none.
    """
    live, *others = await _known(unit, name)
    if not others:
        raise BadRequest(f"projection {name!r} has one generation, {live.number}, and it is live")
    await _remove(unit, others[0])
    await _record(unit, "dropped", name, by, generation=others[0].number)
    return others[0]


async def drop_unknown(unit: Unit, name: str, *, by: Mapping[str, str]) -> Generation:
    """Drop a projection that this release has not, with all of its tables; return what was live.

    Raises:
        BadRequest: there is none.
    """
    live, *others = await _known(unit, name)
    for table in live.tables:
        await unit.execute(f"drop view {table}")
    for each in (live, *others):
        await _remove(unit, each)
    await _record(unit, "dropped", name, by, generation=live.number)
    return live


async def skip(unit: Unit, name: str, *, number: int, at: int, by: Mapping[str, str]) -> Parked:
    """Leave out the event that a generation is parked at, and go on behind it.

    Args:
        number: the generation; 0 is the one that is parked.
        at: the position, so that nobody skips another one than they looked at; 0 is any.

    Raises:
        BadRequest: it is not parked, or not there, or not because of an event.
    """
    generation, parked = await _parked(unit, name, number)
    if at not in (0, parked.position):
        raise BadRequest(
            f"projection {name!r} is parked at position {parked.position}, not at {at}: look again"
        )
    if not parked.is_poison:
        raise BadRequest(
            f"projection {name!r} is parked, and no event is the reason that could be skipped: "
            f"{parked.error}"
        )
    await unit.execute(
        "insert into sm_projection_skip(name, number, position) values (?, ?, ?)",
        name,
        generation.number,
        parked.position,
    )
    checkpoint = Checkpoint(await log_id_of(unit), parked.position)
    await save_checkpoint(unit, generation.checkpoint_name, checkpoint)
    await free(unit, generation)
    await _record(
        unit,
        "skipped",
        name,
        by,
        generation=generation.number,
        position=parked.position,
        event_id=parked.event_id,
        event=parked.name,
        error=parked.error,
    )
    return parked


async def retry(unit: Unit, name: str, *, number: int, by: Mapping[str, str]) -> Parked:
    """Have the event that a generation is parked at tried once more.

    Raises:
        BadRequest: it is not parked.
    """
    generation, parked = await _parked(unit, name, number)
    await unit.execute(
        "update sm_projection set retries = retries + 1 where name = ? and number = ?",
        name,
        generation.number,
    )
    of = {"generation": generation.number, "position": parked.position}
    await _record(unit, "retried", name, by, **of)
    return parked


async def park(unit: Unit, generation: Generation, parked: Parked) -> None:
    """Let a generation stand still; where it stood already for this, it has since then."""
    before = generation.parked
    if before is not None and before.position == parked.position:
        parked = msgspec.structs.replace(parked, since_us=before.since_us)
    await _set_parked(unit, generation, encode(parked).decode())


async def free(unit: Unit, generation: Generation) -> None:
    """Let a parked generation go on."""
    await _set_parked(unit, generation, "")


async def _set_parked(unit: Unit, generation: Generation, parked: str) -> None:
    await unit.execute(
        "update sm_projection set parked = ? where name = ? and number = ?",
        parked,
        generation.name,
        generation.number,
    )
    unit.notify(TOPIC)


async def skipped_of(
    source: Unit | StoreReader, generation: Generation, first: int, last: int
) -> frozenset[int]:
    """Return which positions of a range a generation leaves out."""
    if not generation.skipped:
        return frozenset()
    rows = await executor(source)(
        "select position from sm_projection_skip where name = ? and number = ? "
        "and position >= ? and position <= ?",
        generation.name,
        generation.number,
        first,
        last,
    )
    return frozenset(int(row[0] or 0) for row in rows)


async def _known(unit: Unit, name: str) -> list[Generation]:
    found = await list_generations(unit, name)
    if not found:
        raise BadRequest(
            f"no projection is called {name!r}; synchromesh projection list shows them"
        )
    return found


async def _parked(unit: Unit, name: str, number: int) -> tuple[Generation, Parked]:
    for each in await _known(unit, name):
        if each.parked is not None and number in (0, each.number):
            return each, each.parked
    raise BadRequest(
        f"projection {name!r} is not parked; synchromesh projection list shows how each is"
    )


async def _make(
    unit: Unit, name: str, number: int, version: int, tables: GenerationTables, *, is_live: bool
) -> None:
    for statement in tables.create(number):
        await unit.execute(statement)
    if is_live:
        await _show(unit, name, number, tables.names)
    await unit.execute(
        "insert into sm_projection(name, number, version, digest, tables, is_live, is_waiting, "
        "made_us, retries, parked) values (?, ?, ?, ?, ?, ?, 0, ?, 0, '')",
        name,
        number,
        version,
        tables.digest,
        encode(tables.names).decode(),
        int(is_live),
        unit.now_us,
    )
    at = Checkpoint(await log_id_of(unit))
    await save_checkpoint(unit, checkpoint_of(name, number), at)


async def _show(unit: Unit, name: str, number: int, tables: Iterable[str]) -> None:
    """Let the names of the tables stand for those of a generation."""
    for table in tables:
        try:
            await unit.execute(f"create view {table} as select * from {table_of(table, number)}")
        except StatementFailed as error:
            raise ContractError(
                f"{table!r} cannot stand for the table of projection {name!r}: {error.message}; "
                "a projection's tables are its own: take them out of the service's migrations"
            ) from error


async def _remove(unit: Unit, generation: Generation) -> None:
    for table in generation.tables:
        await unit.execute(f"drop table {table_of(table, generation.number)}")
    for owner in ("sm_projection", "sm_projection_skip"):
        await unit.execute(
            f"delete from {owner} where name = ? and number = ?", generation.name, generation.number
        )
    await unit.execute("delete from sm_checkpoint where name = ?", generation.checkpoint_name)


async def _record(
    unit: Unit, what: str, name: str, by: Mapping[str, str], **details: object
) -> None:
    payload: dict[str, Any] = {"projection": name, **details, **by}
    event = NewEvent(f"{unit.service}.projection_{what}", encode(payload))
    await append_each(unit, [(f"{PREFIX}{name}", event)])
    unit.notify(TOPIC)


def _generation(row: Row | Sequence[Any]) -> Generation:
    parked = str(row[9] or "")
    return Generation(
        name=str(row[0]),
        number=_int(row[1]),
        version=_int(row[2]),
        digest=str(row[3]),
        tables=msgspec.json.decode(str(row[4]), type=tuple[str, ...]),
        is_live=bool(row[5]),
        is_waiting=bool(row[6]),
        made_us=_int(row[7]),
        retries=_int(row[8]),
        parked=msgspec.json.decode(parked, type=Parked) if parked else None,
        position=_int(row[10]),
        log_id=str(row[11]),
        skipped=_int(row[12]),
    )


def _int(value: object) -> int:
    return int(value) if isinstance(value, int | float | str) else 0
