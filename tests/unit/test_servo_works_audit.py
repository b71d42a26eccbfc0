"""The audit: it is silent where everything adds up, and names each way in which it does not."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from audit import audit, main
from credit_provider import Ledger
from services.billing import billing
from services.configurator import configurator
from services.fleet import fleet
from services.inventory import inventory
from services.inventory.stock import PiecesHeld, PiecesReceived, PiecesReleased, StockEvent
from services.orders import orders
from services.production import production

from synchromesh.codec import encode
from synchromesh.events import SCHEMA as EVENTS
from synchromesh.events import snake_case
from synchromesh.events.generation_tables import table_of
from synchromesh.messaging import SCHEMA as MESSAGING
from synchromesh.saga.schema import SCHEMA as SAGAS
from synchromesh.service import Service
from synchromesh.store import Schema
from synchromesh.store.migrations import migrate

STREAM: tuple[StockEvent, ...] = (
    PiecesReceived("SX90", "note-1", 10),
    PiecesHeld("SX90", "h1", "A-1", 2),
    PiecesHeld("SX90", "h2", "A-2", 3),
    PiecesReleased("SX90", "h2", 3),
)


def write(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        for statement in statements:
            database.execute(statement)


def create(folder: Path, service: Service) -> Path:
    path = folder / f"{service.name}.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        tables = Schema(service.name, service.migrations)
        migrate(database, [EVENTS, MESSAGING, SAGAS, tables], path=str(path))
        for versions in service.projections.values():
            own = versions[1].tables
            for statement in own.create(1):
                database.execute(statement)
            for name in own.names:
                database.execute(f"create view {name} as select * from {table_of(name, 1)}")
    return path


def saga_row(saga_id: str, status: str, reason: str = "") -> str:
    return (
        "insert into sm_saga(id, name, version, digest, input, status, reason, owner, trace_id, "
        "span_id, caller, principal, deadline_us, shard, started_us) values "
        f"('{saga_id}', 'place_order', 1, '', x'', '{status}', '{reason}', 'orders', '', '', '', "
        "'', 0, 1, 0)"
    )


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Order A-1 is placed, A-2 was rejected after its stock was held and its charge declined."""
    folder = tmp_path_factory.mktemp("clean")
    ledger = Ledger(sqlite3.connect(folder / "credit_provider.db", isolation_level=None))
    request = {"amount_minor": 117_800, "currency": "EUR"}
    receipt = ledger.charge("1", {**request, "customer": "acme", "reference": "i1"}).body
    assert (
        ledger.charge("2", {**request, "customer": "brassworks", "reference": "i2"}).status == 402
    )
    ledger.close()
    write(
        create(folder, orders),
        "insert into price values ('SX90', 58900, 'EUR')",
        "insert into orders values ('A-1', 'acme', 'SX90', 2, 117800, 'EUR', 'placed')",
        "insert into orders values ('A-2', 'brassworks', 'SX90', 3, 176700, 'EUR', 'rejected')",
        saga_row("A-1", "completed"),
        saga_row("A-2", "undone", "refused: credit_declined"),
    )
    write(
        create(folder, inventory),
        "insert into hold values ('h1', 'A-1', 'SX90', 2, 'active')",
        "insert into hold values ('h2', 'A-2', 'SX90', 3, 'released')",
        "insert into stock_level__1 values ('SX90', 10, 8, 2)",
    )
    with closing(sqlite3.connect(folder / "inventory.db", isolation_level=None)) as database:
        for version, event in enumerate(STREAM, 1):
            name = f"inventory.{snake_case(type(event).__name__)}"
            database.execute(
                "insert into sm_event(id, stream, version, name, type_version, body, is_public, "
                "ordering_key, trace_id, recorded_us) "
                "values (?, 'stock/SX90', ?, ?, 1, ?, 0, '', '', 0)",
                (f"stock-{version}", version, name, encode(event)),
            )
    write(
        create(folder, billing),
        f"insert into invoice values ('i1', 'A-1', 'acme', 117800, 'EUR', 'paid', "
        f"'{receipt['charge_id']}')",
        "insert into invoice values ('i2', 'A-2', 'brassworks', 176700, 'EUR', 'void', '')",
    )
    write(
        create(folder, production),
        "insert into slot values ('s1', 'A-1', 'SX90', 1)",
        "insert into build_sheet values ('A-1', 'i1', 1)",
    )
    write(
        create(folder, configurator),
        "insert into price values ('SX90', 58900, 'EUR', 0)",
        "insert into stock values ('SX90', 8, 0)",
    )
    write(
        create(folder, fleet),
        "insert into machine values ('M-1', 'SX90', 'A-1', 2, 2)",
        "insert into condition__1 values ('M-1', 2, 'running', 0, 40.0, 40.0, 3.0, '')",
        "insert into sm_event(id, stream, version, name, type_version, body, is_public, "
        "ordering_key, trace_id, recorded_us) "
        "values ('taken', 'telemetry/M-1', 1, 'fleet.readings_taken', "
        """1, '{"machine_id":"M-1","readings":[{},{}]}', 0, '', '', 0)""",
    )
    return folder


@pytest.fixture
def folder(clean: Path, tmp_path: Path) -> Path:
    """A copy of the clean databases, to be spoiled."""
    return Path(shutil.copytree(clean, tmp_path / "data"))


TOLD = {"A-1": "placed", "A-2": "rejected", "A-3": "rejected"}


def test_a_clean_system_has_no_findings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything adds up: exit code 0, and the report says what was seen."""
    report = audit(folder, folder / "credit_provider.db", TOLD)
    assert (report.findings, report.is_clean, report.pieces_held) == ([], True, 2)
    assert main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "1 placed, 1 rejected" in out
    assert "1178.00 EUR" in out
    assert "everything adds up" in out


def test_an_audit_changes_nothing(folder: Path) -> None:
    """Its connections only read."""
    before = {path.name: path.read_bytes() for path in folder.glob("*.db")}
    audit(folder, folder / "credit_provider.db", TOLD)
    assert {path.name: path.read_bytes() for path in folder.glob("*.db")} == before


def test_what_is_not_there_cannot_be_audited(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing database is said in words, and is another exit code than a finding."""
    (folder / "billing.db").unlink()
    assert main([str(folder)]) == 2
    assert "billing.db" in capsys.readouterr().err


def test_a_file_that_is_no_database_cannot_be_audited(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A damaged file is said in words as well."""
    (folder / "orders.db").write_bytes(b"no database" * 1000)
    assert main([str(folder)]) == 2
    assert "not a database" in capsys.readouterr().err


CORRUPTIONS = {
    "a price that was not heard": (
        "configurator",
        "delete from price",
        "SX90: the configurator's price is None, but orders has 58900 EUR",
    ),
    "a price that orders never told": (
        "configurator",
        "insert into price values ('SX99', 1, 'EUR', 0)",
        "SX99: the configurator's price is 1 EUR, but orders has None",
    ),
    "a stock that drifted from inventory's": (
        "configurator",
        "update stock set free = 7",
        "SX90: the configurator's free stock is 7, but inventory has 8",
    ),
    "a reading that was not worked out": (
        "fleet",
        "update condition__1 set readings = 1",
        "M-1: 2 readings were taken, 2 are kept as events, 1 are worked out",
    ),
    "a reading that was worked out twice": (
        "fleet",
        "update condition__1 set readings = 3",
        "M-1: 2 readings were taken, 2 are kept as events, 3 are worked out",
    ),
    "a reading that was lost": (
        "fleet",
        "delete from sm_event where stream = 'telemetry/M-1'",
        "M-1: 2 readings were taken, 0 are kept as events, 2 are worked out",
    ),
    "a running saga": ("orders", saga_row("A-9", "running"), "A-9 of orders is running"),
    "a compensating saga": (
        "orders",
        saga_row("A-9", "compensating"),
        "A-9 of orders is compensating",
    ),
    "a stuck saga": ("orders", saga_row("A-9", "stuck", "why"), "A-9 of orders is stuck: why"),
    "a parked message": (
        "production",
        (
            "insert into sm_parked values (1, 'parked', '', 'billing', 'invoice_paid/A-1', 'id', "
            "'billing.invoice_paid', x'', x'', 'ValueError', 'why', 5, 0, 0)"
        ),
        "production has a parked message of billing",
    ),
    "an undecided order": (
        "orders",
        "update orders set status = 'pending' where order_id = 'A-2'",
        "A-2 is neither placed nor rejected",
    ),
    "a lost order": (
        "orders",
        "delete from orders where order_id = 'A-1'",
        "a hold belongs to order A-1, which does not exist",
    ),
    "an order changed later": (
        "orders",
        "update orders set total_minor = 1 where order_id = 'A-1'",
        "order A-1 has the paid invoice (117800, 'EUR', 'i1'), expected (1, 'EUR', 'i1')",
    ),
    "a lost hold": (
        "inventory",
        "delete from hold where id = 'h1'",
        "A-1 is placed with 0 of a hold",
    ),
    "a second hold": (
        "inventory",
        "insert into hold values ('h9', 'A-1', 'SX90', 2, 'active')",
        "A-1 is placed with 2 of a hold",
    ),
    "a hold of another size": (
        "inventory",
        "update hold set qty = 1 where id = 'h1'",
        "A-1 has the hold ('SX90', 1)",
    ),
    "a hold that was not undone": (
        "inventory",
        "update hold set status = 'active' where id = 'h2'",
        "A-2 was rejected, but has a hold",
    ),
    "a stock level that drifted": (
        "inventory",
        "update stock_level__1 set on_hand = 7",
        "SX90: its events add up to (received, on hand, held) (10, 8, 2), its stock level says",
    ),
    "a lost event": (
        "inventory",
        "delete from sm_event where version = 4",
        "SX90: by its events 5 are held, but placed orders have 2",
    ),
    "a gap in a stream": (
        "inventory",
        "delete from sm_event where version = 3",
        "stream stock/SX90 has version 4 where 3 belongs",
    ),
    "an event changed later": (
        "inventory",
        "update sm_event set body = replace(body, ':10', ':11') where version = 1",
        "SX90: its events add up to (received, on hand, held) (11, 9, 2)",
    ),
    "an unknown event": (
        "inventory",
        "update sm_event set name = 'inventory.pieces_eaten' where version = 4",
        "an event that nobody knows: inventory.pieces_eaten",
    ),
    "an invoice left open": (
        "billing",
        "update invoice set status = 'open' where id = 'i2'",
        "order A-2 has 1 invoice that is neither paid nor void",
    ),
    "a rejected order that was paid": (
        "billing",
        "update invoice set status = 'paid' where id = 'i2'",
        "A-2 was rejected, but has a paid invoice",
    ),
    "an order that was invoiced twice": (
        "billing",
        "insert into invoice values ('i9', 'A-1', 'acme', 117800, 'EUR', 'paid', 'ch_x')",
        "A-1 is placed with 2 of a paid invoice",
    ),
    "another currency": (
        "billing",
        "update invoice set currency = 'USD' where id = 'i1'",
        "placed orders come to {'EUR': 117800}, paid invoices to {'USD': 117800}",
    ),
    "a receipt that was made up": (
        "billing",
        "update invoice set receipt = 'ch_x' where id = 'i1'",
        "invoice i1 is paid by 'ch_x', but the provider knows",
    ),
    "a charge without an invoice": (
        "credit_provider",
        "insert into charge values ('ch_9', 'acme', 500, 'EUR', 'i9')",
        "the provider charged {'EUR': 118300}, paid invoices say {'EUR': 117800}",
    ),
    "a lost slot": ("production", "delete from slot", "A-1 is placed with 0 of a slot"),
    "a second slot": (
        "production",
        "insert into slot values ('s9', 'A-1', 'SX90', 2)",
        "A-1 is placed with 2 of a slot",
    ),
    "a slot of a rejected order": (
        "production",
        "insert into slot values ('s9', 'A-2', 'SX90', 2)",
        "A-2 was rejected, but has a slot",
    ),
    "a lost build sheet": (
        "production",
        "delete from build_sheet",
        "A-1 is placed with 0 of a build sheet",
    ),
    "a build sheet handed out twice": (
        "production",
        "update build_sheet set times = 2",
        "A-1 has the build sheet ('i1', 2), expected ('i1', 1)",
    ),
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_one_wrong_row_is_found(
    folder: Path, corruption: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever row is wrong, the audit names it and exits with 1."""
    database, statement, finding = CORRUPTIONS[corruption]
    write(folder / f"{database}.db", statement)
    assert main([str(folder)]) == 1
    assert finding in capsys.readouterr().out


@pytest.mark.parametrize(
    ("order_id", "told"),
    [("A-2", "placed"), ("A-3", "placed"), ("A-3", "accepted"), ("A-1", "rejected")],
)
def test_what_clients_were_told_is_kept(folder: Path, order_id: str, told: str) -> None:
    """An order that a client was told of exists, and is what it was said to be."""
    findings = audit(folder, expected={order_id: told}).findings
    assert [f"that order {order_id} is {told}" in line for line in findings] == [True]


def test_an_accepted_order_may_end_either_way(folder: Path) -> None:
    """Accepted promises an answer, not which."""
    assert audit(folder, expected={"A-1": "accepted", "A-2": "accepted"}).is_clean
