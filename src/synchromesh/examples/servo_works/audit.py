"""Audits servo-works from outside: reads its databases by SQL, and no code of its services.

    python audit.py .synchromesh/data
    python audit.py postgresql://admin@db.example:5432

It is run once nothing is under way any more, and holds the six databases and the credit provider's
books against one another: every order placed or fully undone, stock and money to the last piece and
cent, no saga left behind, no reading of a drive lost, and what the configurator was told as its
owners have it. Prints what it finds and exits with 1 where it finds anything, 2 where there is
nothing to audit.
"""

import argparse
import asyncio
import contextlib
import json
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

SERVICES = ("orders", "inventory", "billing", "production", "configurator", "fleet")
PROVIDER_DB = "credit_provider.db"
LINES_MAX = 200


class SqlDatabase(Protocol):
    """A database that is asked."""

    def execute(self, sql: str, /) -> Iterable[tuple[Any, ...]]:
        """Return the rows of a statement."""
        ...


class Unreadable(Exception):
    """Raised when a server's databases cannot be read."""


@dataclass
class Report:
    """What an audit saw, and what it found wrong: one readable line each."""

    findings: list[str] = field(default_factory=list)
    orders: Counter[str] = field(default_factory=Counter)
    sagas: Counter[str] = field(default_factory=Counter)
    paid_minor: Counter[str] = field(default_factory=Counter)
    pieces_held: int = 0
    readings: int = 0

    @property
    def is_clean(self) -> bool:
        """True where everything adds up."""
        return not self.findings

    def find(self, line: str) -> None:
        """Note that something is wrong."""
        self.findings.append(line)

    def lines(self) -> list[str]:
        """Return the lines of the report."""
        paid = [f"{m // 100}.{m % 100:02d} {c}" for c, m in sorted(self.paid_minor.items())]
        return [
            f"orders: {_counts(self.orders)}",
            f"sagas:  {_counts(self.sagas)}",
            f"held:   {self.pieces_held} pieces for placed orders",
            f"paid:   {', '.join(paid) or 'nothing'}",
            f"fleet:  {self.readings} readings",
            *self.findings[:LINES_MAX],
            f"{len(self.findings)} findings" if self.findings else "everything adds up",
        ]


def audit(
    place: Path | str, provider_db: Path | None = None, expected: Mapping[str, str] | None = None
) -> Report:
    """Audit the databases in a folder, or on a server, against one another.

    Args:
        place: the folder where the databases of the services are, such as `orders.db`; or the URL
            of a PostgreSQL server, with a user that may read all of them.
        provider_db: the credit provider's books; None leaves them out.
        expected: what clients were told of each order: "placed", "accepted" or "rejected".

    Raises:
        FileNotFoundError: a database is missing.
        Unreadable: the server cannot be reached, or refuses.
    """
    with contextlib.ExitStack() as stack:
        databases = stack.enter_context(opened(place, SERVICES))
        provider = None if provider_db is None else stack.enter_context(_opened(provider_db))
        return audit_databases(databases, provider, expected)


def audit_databases(
    databases: Mapping[str, SqlDatabase],
    provider: SqlDatabase | None = None,
    expected: Mapping[str, str] | None = None,
) -> Report:
    """Hold databases that are open against one another, by the names of their services.

    Those of the configurator and of the fleet may be left out: no order goes through them.
    """
    report = Report()
    for name, database in databases.items():
        _check_nothing_left(report, name, database)
    _check_orders(report, databases)
    _check_stock(report, databases)
    _check_expected(report, databases["orders"], expected or {})
    _check_money(report, databases, provider)
    if "configurator" in databases:
        _check_read_model(report, databases)
    if "fleet" in databases:
        _check_readings(report, databases["fleet"])
    return report


# -- nothing is left behind ----------------------------------------------------------------------


def _check_nothing_left(report: Report, service: str, database: SqlDatabase) -> None:
    for saga_id, name, status, owner, reason in database.execute(
        "select id, name, status, owner, reason from sm_saga order by id"
    ):
        report.sagas[status] += 1
        if status not in ("completed", "undone"):
            report.find(f"saga {name} {saga_id} of {service} is {status}: {reason or owner}")
    for source, scope in database.execute("select source, scope from sm_parked order by 1, 2"):
        report.find(f"{service} has a parked message of {source}: {scope}")


# -- each order, across the services it goes through ---------------------------------------------


def _check_orders(report: Report, databases: Mapping[str, SqlDatabase]) -> None:
    holds = _by_order(
        databases["inventory"],
        "select order_id, sku, qty from hold where status = 'active'",
    )
    paid = _by_order(
        databases["billing"],
        "select order_id, total_minor, currency, id from invoice where status = 'paid'",
    )
    slots = _by_order(databases["production"], "select order_id, sku from slot")
    sheets = _by_order(
        databases["production"], "select order_id, invoice_id, times from build_sheet"
    )
    owned = {"hold": holds, "paid invoice": paid, "slot": slots, "build sheet": sheets}
    known = set()
    for order_id, sku, qty, minor, currency, status in databases["orders"].execute(
        "select order_id, sku, qty, total_minor, currency, status from orders order by order_id"
    ):
        known.add(order_id)
        report.orders[status] += 1
        if status == "placed":
            invoice = paid.get(order_id, [("", "", "")])[0][2]
            _check_one(report, order_id, "hold", holds, (sku, qty))
            _check_one(report, order_id, "paid invoice", paid, (minor, currency, invoice))
            _check_one(report, order_id, "slot", slots, (sku,))
            _check_one(report, order_id, "build sheet", sheets, (invoice, 1))
        elif status == "rejected":
            for what, rows in owned.items():
                for row in rows.get(order_id, []):
                    report.find(f"order {order_id} was rejected, but has a {what}: {row}")
        else:
            report.find(f"order {order_id} is neither placed nor rejected: it is {status}")
    for what, rows in owned.items():
        for order_id in sorted(set(rows) - known):
            report.find(f"a {what} belongs to order {order_id}, which does not exist")
    for order_id, count in databases["billing"].execute(
        "select order_id, count(*) from invoice where status = 'open' group by order_id"
    ):
        report.find(f"order {order_id} has {count} invoice that is neither paid nor void")


def _check_one(
    report: Report,
    order_id: str,
    what: str,
    rows: Mapping[str, list[tuple[Any, ...]]],
    expected: tuple[Any, ...],
) -> None:
    found = rows.get(order_id, [])
    if len(found) != 1:
        report.find(f"order {order_id} is placed with {len(found)} of a {what}, expected 1")
    elif found[0] != expected:
        report.find(f"order {order_id} has the {what} {found[0]}, expected {expected}")


def _by_order(database: SqlDatabase, sql: str) -> dict[str, list[tuple[Any, ...]]]:
    rows: dict[str, list[tuple[Any, ...]]] = {}
    for order_id, *rest in database.execute(sql):
        rows.setdefault(order_id, []).append(tuple(rest))
    return rows


# -- stock, to the last piece --------------------------------------------------------------------


def _check_stock(report: Report, databases: Mapping[str, SqlDatabase]) -> None:
    inventory = databases["inventory"]
    sold: Counter[str] = Counter()
    for sku, qty in databases["orders"].execute(
        "select sku, qty from orders where status = 'placed'"
    ):
        sold[sku] += qty
    report.pieces_held = sum(sold.values())
    streams = _streams(report, inventory)
    levels = {
        sku: tuple(level)
        for sku, *level in inventory.execute(
            "select sku, received, on_hand, held from stock_level order by sku"
        )
    }
    for sku in sorted({*streams, *levels, *sold}):
        stream, level = streams.get(sku, (0, 0, 0)), levels.get(sku, (0, 0, 0))
        if stream != level:
            report.find(
                f"{sku}: its events add up to (received, on hand, held) {stream}, "
                f"its stock level says {level}"
            )
        for where, (received, on_hand, held) in (("events", stream), ("stock level", level)):
            if received != on_hand + held or on_hand < 0:
                report.find(
                    f"{sku}: by its {where} {received} were received, "
                    f"but {on_hand} are on hand and {held} held"
                )
            if held != sold[sku]:
                report.find(
                    f"{sku}: by its {where} {held} are held, but placed orders have {sold[sku]}"
                )


def _streams(report: Report, inventory: SqlDatabase) -> dict[str, tuple[int, int, int]]:
    """Return (received, on hand, held) of each drive, added up from its stream."""
    sums: dict[str, tuple[int, int, int]] = {}
    versions: Counter[str] = Counter()
    for stream, version, name, body in inventory.execute(
        "select stream, version, name, body from sm_event where stream like 'stock/%' "
        "order by stream, version"
    ):
        versions[stream] += 1
        if version != versions[stream]:
            report.find(f"stream {stream} has version {version} where {versions[stream]} belongs")
            versions[stream] = version
        event = json.loads(body)
        received, on_hand, held = sums.get(event["sku"], (0, 0, 0))
        qty = event["qty"]
        match name:
            case "inventory.pieces_received":
                after = (received + qty, on_hand + qty, held)
            case "inventory.pieces_held":
                after = (received, on_hand - qty, held + qty)
            case "inventory.pieces_released":
                after = (received, on_hand + qty, held - qty)
            case _:
                report.find(f"stream {stream} has an event that nobody knows: {name}")
                continue
        sums[event["sku"]] = after
    return sums


# -- money, to the last cent ---------------------------------------------------------------------


def _check_money(
    report: Report,
    databases: Mapping[str, SqlDatabase],
    provider: SqlDatabase | None,
) -> None:
    sold = _sums(
        databases["orders"],
        "select currency, sum(total_minor) from orders where status = 'placed' group by currency",
    )
    paid = _sums(
        databases["billing"],
        "select currency, sum(total_minor) from invoice where status = 'paid' group by currency",
    )
    report.paid_minor = paid
    if sold != paid:
        report.find(f"placed orders come to {dict(sold)}, paid invoices to {dict(paid)}")
    if provider is None:
        return
    charged = _sums(provider, "select currency, sum(amount_minor) from charge group by currency")
    if charged != paid:
        report.find(f"the provider charged {dict(charged)}, paid invoices say {dict(paid)}")
    charges = dict(provider.execute("select reference, id from charge"))
    for invoice_id, receipt in databases["billing"].execute(
        "select id, receipt from invoice where status = 'paid' order by id"
    ):
        if charges.get(invoice_id) != receipt:
            report.find(
                f"invoice {invoice_id} is paid by {receipt!r}, "
                f"but the provider knows {charges.get(invoice_id)!r}"
            )


def _sums(database: SqlDatabase, sql: str) -> Counter[str]:
    return Counter(dict(database.execute(sql)))


# -- what the configurator heard -----------------------------------------------------------------


def _check_read_model(report: Report, databases: Mapping[str, SqlDatabase]) -> None:
    copies = databases["configurator"]
    prices = "select sku, price_minor || ' ' || currency from price"
    for what, owner, owned, copied in (
        ("price", "orders", prices, prices),
        (
            "free stock",
            "inventory",
            "select sku, on_hand from stock_level",
            "select sku, free from stock",
        ),
    ):
        truth = dict(databases[owner].execute(owned))
        told = dict(copies.execute(copied))
        for sku in sorted(truth.keys() | told.keys()):
            if truth.get(sku) != told.get(sku):
                report.find(
                    f"{sku}: the configurator's {what} is {told.get(sku)}, "
                    f"but {owner} has {truth.get(sku)}"
                )


# -- every reading of every drive ----------------------------------------------------------------


def _check_readings(report: Report, fleet: SqlDatabase) -> None:
    """Taken, kept as events, and worked out: the three are one number for each drive."""
    taken = dict(fleet.execute("select id, taken from machine"))
    worked_out = dict(fleet.execute("select machine_id, readings from condition"))
    kept: Counter[str] = Counter()
    for (body,) in fleet.execute("select body from sm_event where name = 'fleet.readings_taken'"):
        event = json.loads(body)
        kept[event["machine_id"]] += len(event["readings"])
    report.readings = sum(taken.values())
    for machine_id in sorted({*taken, *kept, *worked_out}):
        counts = tuple(each.get(machine_id, 0) for each in (taken, kept, worked_out))
        if len(set(counts)) > 1:
            report.find(
                f"{machine_id}: {counts[0]} readings were taken, {counts[1]} are kept as events, "
                f"{counts[2]} are worked out"
            )


# -- what clients were told ----------------------------------------------------------------------


def _check_expected(report: Report, orders: SqlDatabase, expected: Mapping[str, str]) -> None:
    statuses = dict(orders.execute("select order_id, status from orders"))
    for order_id, told in sorted(expected.items()):
        status = statuses.get(order_id)
        is_kept = {
            "placed": status == "placed",
            "accepted": status in ("placed", "rejected"),
            # An order that could not even be taken, for want of a price, leaves no row.
            "rejected": status in ("rejected", None),
        }
        if not is_kept.get(told, False):
            report.find(
                f"a client was told that order {order_id} is {told}, but it "
                + (f"is {status}" if status else "does not exist")
            )


# -- reading -------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(place: Path | str, services: Iterable[str]) -> Iterator[dict[str, SqlDatabase]]:
    """Open the databases of services, in a folder or on a server, for reading only."""
    with contextlib.ExitStack() as stack:
        yield {
            name: _OnServer(place, name)
            if isinstance(place, str)
            else stack.enter_context(_opened(place / f"{name}.db"))
            for name in services
        }


class _OnServer:
    """A database of a PostgreSQL server; each statement has a connection of its own."""

    def __init__(self, url: str, service: str) -> None:
        self._url = urlsplit(url)._replace(path=f"/servo_works_{service}").geturl()

    def execute(self, sql: str, /) -> list[tuple[Any, ...]]:
        # In a thread, for whoever asks may run on a loop of their own.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, self._fetch(sql)).result()

    async def _fetch(self, sql: str) -> list[tuple[Any, ...]]:
        # Only where there is a server.
        import asyncpg  # type: ignore[import-untyped, unused-ignore]

        try:
            connection = await asyncpg.connect(
                self._url, server_settings={"default_transaction_read_only": "on"}
            )
            try:
                rows = await connection.fetch(sql)
            finally:
                connection.terminate()
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise Unreadable(f"{self._url.rpartition('@')[2]}: {error}") from error
        # Sums are of another type there.
        return [tuple(int(v) if isinstance(v, Decimal) else v for v in row) for row in rows]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database for reading only."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no database {path}")
    with contextlib.closing(
        sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    ) as database:
        database.execute("pragma query_only = on")
        yield database


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counter.items())) or "none"


def main(arguments: Iterable[str] | None = None) -> int:
    """Audit the folder or server named on the command line and return the exit code."""
    parser = argparse.ArgumentParser(description="Audits the databases of servo-works.")
    parser.add_argument("place", help="such as .synchromesh/data, or postgresql://HOST")
    parser.add_argument("--provider-db", type=Path, help=f"by default in a folder: {PROVIDER_DB}")
    options = parser.parse_args(None if arguments is None else list(arguments))
    is_server = options.place.startswith(("postgresql://", "postgres://"))
    place = options.place if is_server else Path(options.place)
    provider_db = options.provider_db
    if provider_db is None and isinstance(place, Path) and (place / PROVIDER_DB).is_file():
        provider_db = place / PROVIDER_DB
    try:
        report = audit(place, provider_db)
    except (FileNotFoundError, sqlite3.Error, Unreadable) as error:
        sys.stderr.write(f"nothing to audit: {error}\n")
        return 2
    sys.stdout.write("\n".join(report.lines()) + "\n")
    return 0 if report.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
