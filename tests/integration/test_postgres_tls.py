"""PostgreSQL by TLS: a real server with `ssl = on`; what is refused is told with its mend."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from certificates import issue
from cli_runs import runner
from nats_world import Wire
from postgres_server import SECURED, PostgresServer, shared_server
from synchromesh.errors import StoreBroken, StoreError, StoreUnavailable
from synchromesh.runtime import RealRuntime
from synchromesh.store import Migration, Schema, Unit
from synchromesh.store.postgres import PostgresOptions, PostgresStore
from synchromesh.store.postgres_connection import connect

pytestmark = pytest.mark.anyio

ITEMS = Schema("items", (Migration(1, ("create table item(id integer primary key)",), 1),))
PASSWORD, WAIT_S = "s3cret", 180.0
TOML = """
[system]
name = "tls"
[services.notes]
app = "notes_app:notes"
[engine]
postgres = "env:DATABASE_URL"
"""


class SecuredServer(PostgresServer):
    """A server on a port of loopback, with a certificate for 127.0.0.1 of an authority `ca`."""

    def __init__(self, files: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.port = taken.getsockname()[1]
        super().__init__("listen_addresses=127.0.0.1", f"port={self.port}", wheel=SECURED)
        ca = issue(files, "ca")
        self.ca, self.others, data = ca.pem, issue(files, "others").pem, self.folder / "data"
        made = issue(files, "db", by=ca, host="127.0.0.1")
        for each in (made.pem, made.key):
            shutil.copy(each, data / each.name)
            (data / each.name).chmod(0o600)
            os.chown(data / each.name, data.stat().st_uid, data.stat().st_gid)
        asyncio.run(self._secure())

    def url(self, database: str, *, user: str = "postgres") -> str:
        return f"{super().url(database, user=user)}&port={self.port}"

    def at(self, query: str, host: str = "127.0.0.1") -> str:
        """Return the address for the network."""
        return f"postgresql://postgres:{PASSWORD}@{host}:{self.port}/postgres?{query}"

    async def _secure(self) -> None:
        connection = await asyncpg.connect(self.url("postgres"))
        for name, value in (("cert_file", "db.pem"), ("key_file", "db.key")):
            await connection.execute(f"alter system set ssl_{name} = '{value}'")
        await connection.execute("alter system set ssl = on")
        await connection.execute(f"alter role postgres password '{PASSWORD}'")
        await connection.execute("select pg_reload_conf()")
        await connection.close()
        async with asyncio.timeout(WAIT_S):
            while not await self._is_secured():
                await asyncio.sleep(0.01)

    async def _is_secured(self) -> bool:
        try:
            connection = await asyncpg.connect(self.at("sslmode=require"))
        except OSError:
            return False
        await connection.close()
        return True


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredServer]:
    made = SecuredServer(tmp_path_factory.mktemp("tls"))
    yield made
    made.close()


async def refused(url: str, as_: type[StoreError] = StoreBroken) -> str:
    """Return why a connection is refused, whose message has no password.

    Args:
        as_: `StoreBroken` where a person has to mend it, or else `StoreUnavailable`.
    """
    with pytest.raises(StoreError) as told:
        await connect(url, service="tls")
    assert type(told.value) is as_, told.value
    assert PASSWORD not in told.value.message
    return told.value.message


async def put(unit: Unit, number: int) -> int:
    await unit.execute("insert into item(id) values (?)", number)
    return number


async def test_a_store_works_by_tls_whose_server_proves_itself(server: SecuredServer) -> None:
    """All its sessions are secured: units, reads, wake-ups, and what cancels a statement."""
    url = server.at(f"sslmode=verify-full&sslrootcert={server.ca}")
    store = await PostgresStore.open(
        url, service="tls", schemas=[ITEMS], runtime=RealRuntime(),
        options=PostgresOptions(connections_max=2),
    )  # fmt: skip
    assert await store.write(lambda unit: put(unit, 1), name="put") == 1
    assert await store.read("select id from item") == [(1,)]
    found = await store.read(
        "select s.ssl, s.version from pg_stat_activity a join pg_stat_ssl s using (pid) "
        "where a.client_addr is not null"
    )
    assert len(found) > 1
    assert {(is_secured, str(version)[:5]) for is_secured, version in found} == {(True, "TLSv1")}
    await store.close()
    connection = await connect(url, service="tls", limit_s=60.0)
    with pytest.raises(TimeoutError):
        await connection.execute("select pg_sleep(60)", timeout=0.01)
    assert await connection.fetchval("select 1") == 1
    await connection.close()


async def test_who_does_not_prove_to_be_the_server_is_refused(server: SecuredServer) -> None:
    """Another authority, another host, no authority that is named: one message each."""
    full = "sslmode=verify-full&sslrootcert="
    told = await refused(server.at(f"{full}{server.others}"))
    assert "its certificate is not believed (" in told
    assert "name its authority, as in ?sslmode=verify-full&sslrootcert=PATH" in told
    told = await refused(server.at(f"{full}{server.ca}", host="localhost"))
    assert "its certificate is of another host (" in told
    assert "connect by a name that is in it" in told


async def test_a_mistake_about_files_is_told_as_that(
    server: SecuredServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not as a server that is away, or an address that is none."""
    monkeypatch.setenv("HOME", str(tmp_path))
    full, key = "sslmode=verify-full", server.ca.with_suffix(".key")
    for query, why in (
        (f"{full}&sslrootcert=/no/ca.pem", "the file of sslrootcert, /no/ca.pem, cannot be read"),
        (f"{full}&sslrootcert={key}", "is no PEM of what it is named for"),
        (full, "write ?sslmode=verify-full&sslrootcert=PATH"),
        ("sslmode=always", "`sslmode` parameter must be one of"),
    ):
        assert why in await refused(server.at(query))


async def test_a_server_without_tls_is_refused_where_the_address_asks_for_it() -> None:
    """Nothing is sent to it, the password least of all."""
    wire = Wire(f"{shared_server().folder}/socket/.s.PGSQL.5432")
    await wire.start()
    url = f"postgresql://postgres:{PASSWORD}@127.0.0.1:{wire.port}/postgres?sslmode=require"
    told = await refused(url, StoreUnavailable)
    assert "it has no TLS, and sslmode in the address asks for it; set ssl = on" in told
    await wire.close()


async def test_what_is_no_postgresql_is_told_as_that() -> None:
    """Nobody has asked for TLS, and a driver that offers it is answered by something else."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    other = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = other.sockets[0].getsockname()[1]
    told = await refused(f"postgresql://postgres@127.0.0.1:{port}/postgres", StoreUnavailable)
    assert "what answers there is no PostgreSQL server; give its address and port" in told
    other.close()


async def test_one_of_several_servers_whose_tls_is_wrong_keeps_none_from_answering(
    server: SecuredServer,
) -> None:
    """Only where it is wrong at each of them, that is told, as the first of them has it."""
    both = f"localhost:{server.port},127.0.0.1"
    full = "sslmode=verify-full&sslrootcert="
    connection = await connect(server.at(f"{full}{server.ca}", host=both), service="tls")
    await connection.close()
    told = await refused(server.at(f"{full}{server.others}", host=both))
    assert "@localhost:" in told
    assert "its certificate is not believed (" in told


async def test_a_proxy_that_ends_a_handshake_may_mend_itself() -> None:
    """As it does while it fails over; and nobody there is no file that cannot be read."""

    async def alerts(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        writer.write(b"S")
        await reader.read(1)
        writer.write(bytes.fromhex("15030300020250"))  # an alert: fatal, internal_error
        await writer.drain()
        writer.close()

    proxy = await asyncio.start_server(alerts, "127.0.0.1", 0)
    at = f"postgresql://postgres:{PASSWORD}@127.0.0.1:{proxy.sockets[0].getsockname()[1]}/postgres"
    assert "TLS fails (" in await refused(f"{at}?sslmode=require", StoreUnavailable)
    proxy.close()
    await proxy.wait_closed()
    told = await refused(f"{at}?sslmode=disable&sslrootcert=/no/ca.pem", StoreUnavailable)
    assert "cannot be reached (" in told


def test_databases_of_a_system_are_made_and_verified_by_tls(
    server: SecuredServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the address says of TLS holds for the role of each service, too."""
    (tmp_path / "synchromesh.toml").write_text(TOML)
    run, full = runner(capsys), "sslmode=verify-full&sslrootcert="
    monkeypatch.setenv("DATABASE_URL", server.at(f"{full}{server.ca}"))
    assert run(tmp_path, "db", "create").code == 0
    assert run(tmp_path, "db", "migrate", "--why", "new").code == 0
    assert "notes: in order" in run(tmp_path, "db", "verify").out
    monkeypatch.setenv("DATABASE_URL", server.at(f"{full}{server.others}"))
    ran = run(tmp_path, "db", "create")
    assert (ran.code, "its certificate is not believed" in ran.err) == (2, True)
