"""What fleet does: takes the readings of drives, and works out from them how each drive is.

Taking is quick and durable; working out comes after it. So that drives cannot report faster than
that for long, each has room for a number of readings that wait: a batch that would not fit is shed
before anything of it is written, and the drive keeps it and comes again. Every answer says how much
room is left.
"""

from contracts.fleet import (
    Batch,
    Fleet,
    Machine,
    MachineState,
    Nameplate,
    OtherNameplate,
    Reading,
    Taken,
    UnknownMachine,
)
from msgspec import Struct, convert

from services.fleet.condition import Condition, after
from synchromesh import Context, Migration, Service, Transaction
from synchromesh.errors import Shed

TABLES = (
    """
    create table machine(
        id text primary key, sku text not null, order_id text,
        last_number bigint not null, taken bigint not null
    )
    """,
)
# Worked out from readings, and worked out anew at any time.
CONDITIONS = """
    create table condition(
        machine_id text primary key, readings bigint not null, state text not null,
        at_s bigint not null, temperature_c double precision not null,
        hottest_c double precision not null, current_a double precision not null,
        last_fault text not null
    )
"""

# The columns of a condition, in the order of its fields.
CONDITION = tuple[int, MachineState, int, float, float, float, str]
WAITING_MAX = 300
COME_AGAIN_AFTER_S = 0.2

fleet = Service("fleet", implements=Fleet, migrations=[Migration(1, TABLES, readable_by_min=1)])


class ReadingsTaken(Struct, frozen=True):
    machine_id: str
    readings: tuple[Reading, ...]


@fleet.writes(Fleet.report)
async def report(tx: Transaction, batch: Batch) -> Taken:
    """Take the readings that are new; a drive that is not sure what we have sends them again."""
    plate = batch.machine
    last, waiting = await known(tx, plate)
    fresh = batch.readings[max(0, last + 1 - batch.first) :]
    if waiting + len(fresh) > WAITING_MAX:
        raise Shed(
            f"{waiting} readings of {plate.machine_id} wait to be worked on, and {len(fresh)} more "
            f"are over the {WAITING_MAX} that may; send them again later",
            retry_after_s=COME_AGAIN_AFTER_S,
        )
    if fresh:
        last = batch.first + len(batch.readings) - 1
        await tx.append(f"telemetry/{plate.machine_id}", [ReadingsTaken(plate.machine_id, fresh)])
        await tx.execute(
            "insert into machine(id, sku, order_id, last_number, taken) values (?, ?, ?, ?, ?) "
            "on conflict(id) do update set last_number = excluded.last_number, "
            "taken = machine.taken + excluded.taken",
            plate.machine_id,
            plate.sku,
            plate.order_id,
            last,
            len(fresh),
        )
    return Taken(last, WAITING_MAX - waiting - len(fresh))


async def known(tx: Transaction, plate: Nameplate) -> tuple[int, int]:
    """Return the number of a drive's last reading that we have, and how many readings wait."""
    rows = await tx.execute(
        "select sku, order_id, last_number, taken - coalesce(readings, 0) from machine "
        "left join condition on machine_id = id where id = ?",
        plate.machine_id,
    )
    if not rows:
        return 0, 0
    sku, order_id, last, waiting = convert(rows[0], tuple[str, str | None, int, int])
    if (sku, order_id) != (plate.sku, plate.order_id):
        raise OtherNameplate(
            f"{plate.machine_id} is known as {sku} of order {order_id}, and now says that it is "
            f"{plate.sku} of order {plate.order_id}"
        )
    return last, waiting


@fleet.projection("condition", events=(ReadingsTaken,), tables=[CONDITIONS])
async def work_out(tx: Transaction, taken: ReadingsTaken) -> None:
    """Bring the condition of a drive up to its latest reading, which makes room for more."""
    rows = await tx.execute(
        "select readings, state, at_s, temperature_c, hottest_c, current_a, last_fault "
        "from condition where machine_id = ?",
        taken.machine_id,
    )
    condition = Condition(*convert(rows[0], CONDITION)) if rows else Condition()
    for reading in taken.readings:
        condition = after(condition, reading)
    await tx.execute(
        "insert into condition(machine_id, readings, state, at_s, temperature_c, hottest_c, "
        "current_a, last_fault) values (?, ?, ?, ?, ?, ?, ?, ?) "
        "on conflict(machine_id) do update set readings = excluded.readings, "
        "state = excluded.state, at_s = excluded.at_s, temperature_c = excluded.temperature_c, "
        "hottest_c = excluded.hottest_c, current_a = excluded.current_a, "
        "last_fault = excluded.last_fault",
        taken.machine_id,
        condition.readings,
        condition.state,
        condition.at_s,
        condition.temperature_c,
        condition.hottest_c,
        condition.current_a,
        condition.last_fault,
    )


@fleet.handles(Fleet.machine)
async def machine(ctx: Context, machine_id: str) -> Machine:
    """Return a drive by its latest reading that was worked on."""
    rows = await ctx.read(
        "select id, sku, order_id, taken, readings, state, at_s, temperature_c, hottest_c, "
        "current_a, last_fault from machine left join condition on machine_id = id where id = ?",
        machine_id,
    )
    if not rows:
        raise UnknownMachine(f"no drive with the id {machine_id} has ever reported")
    machine_id, sku, order_id, taken = convert(rows[0][:4], tuple[str, str, str | None, int])
    has_condition = rows[0][4] is not None
    now = Condition(*convert(rows[0][4:], CONDITION)) if has_condition else Condition()
    return Machine(
        machine_id, sku, order_id, now.state, now.readings, taken - now.readings, now.at_s,
        now.temperature_c, now.hottest_c, now.current_a, now.last_fault,
    )  # fmt: skip
