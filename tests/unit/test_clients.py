"""Clients from outside: literal times, every way of not being let in, and grants that change."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import hashlib
import hmac
import json
import os
import random
from pathlib import Path
from typing import Protocol

import pytest

from cli_runs import runner
from synchromesh import Client, Contract, command, query
from synchromesh.calls import Dispatcher, HttpEdge, Incoming, operations_of
from synchromesh.calls.admission import admitted
from synchromesh.clients import (
    ClientBook,
    ClientCredential,
    ClientSigner,
    credential_text,
    read_credential,
)
from synchromesh.errors import (
    BadRequest,
    ConfigError,
    ConnectFailed,
    Forbidden,
    Unauthenticated,
)
from synchromesh.http import Headers, HttpRequest
from synchromesh.identity import REGISTRY, Credential, Signer
from synchromesh.messaging import deliver_to
from synchromesh.runtime import RealDisk, Runtime
from synchromesh.system.client import REMEDY
from synchromesh.system.config.client_grants import ClientsFile, check_scopes
from synchromesh.telemetry import MemoryRing, Tracer
from synchromesh.testing import run

KEY = b"k" * 32
S = 1_000_000
DAY = 86_400 * S
NOW = 1_800_000_000 * S


class Billing(Contract, Protocol, service="billing", version="1.0"):
    @command("POST /charges")
    async def charge(self, order: str) -> int: ...
    @query("GET /quotes")
    async def quote(self) -> int: ...


class Town:
    """A system's signer, the grants of its clients, and how one of them signs."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "clients.json"
        self.signer = Signer(KEY)
        self.signer.clients = ClientBook(self.path, self.signer.client_keys)

    def file(self, now_us: int = NOW) -> ClientsFile:
        return ClientsFile(self.path, RealDisk(), now_us)

    def add(self, *scopes: str, name: str = "nightly", serves: str = "", days: int = 30) -> str:
        """Return the credential of a new client."""
        made = self.file().add(
            name, scopes, serves=serves, days=days, made=("ada", "tries"), rng=random.Random(name)
        )
        return credential_text(made.id, self.signer.client_key(made.id))

    def admit(self, token: str, audience: str = "billing", now_us: int = NOW) -> Credential:
        return self.signer.admit(token, audience=audience, now_us=now_us)


@pytest.fixture
def town(tmp_path: Path) -> Town:
    return Town(tmp_path)


def signed(credential: str, audience: str = "billing", now_us: int = NOW) -> str:
    return ClientSigner(credential).token("", audience=audience, now_us=now_us)


def jwt(credential: str, head: object, claims: object) -> str:
    """Sign what a client of ours would not."""
    _, key = read_credential(credential)

    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    text = f"{part(json.dumps(head).encode())}.{part(json.dumps(claims).encode())}"
    return f"{text}.{part(hmac.new(key, text.encode(), hashlib.sha256).digest())}"


def test_a_client_is_known_by_its_name_and_its_scopes(town: Town) -> None:
    """It is a caller and a principal that no service can be, for as long as its token is good."""
    who = town.admit(signed(town.add("billing.quote", "orders")))
    assert isinstance(who, ClientCredential)
    assert (who.service, who.principal.name, who.principal.kind) == (
        "client.nightly",
        "client:nightly",
        "client",
    )
    assert who.principal.scopes == {"billing.quote", "orders"}
    assert (who.audience, who.expires_us) == ("billing", NOW + 60 * S)


def test_what_services_sign_is_admitted_as_before(town: Town) -> None:
    """A service is no client, whatever clients there are."""
    token = town.signer.token("orders", audience="billing", now_us=NOW)
    assert town.admit(token) == Credential("orders", audience="billing", expires_us=NOW + 300 * S,
                                           principal=town.admit(token).principal)  # fmt: skip
    with pytest.raises(Unauthenticated, match="not signed by this system"):
        town.signer.verify(signed(town.add("billing")), audience="billing", now_us=NOW)


@pytest.mark.parametrize(
    ("scopes", "operation", "may"),
    [
        (["billing"], Billing.charge, True),
        (["billing.charge"], Billing.charge, True),
        (["billing.quote"], Billing.charge, False),
        (["billing"], deliver_to("billing"), False),
        (["billing.deliver_message"], deliver_to("billing"), False),
    ],
)
def test_a_call_within_the_scopes_is_let_in(
    town: Town, scopes: list[str], operation: object, may: bool
) -> None:
    """A service, or single operations of it; what services ask of each other is for none."""
    token = signed(town.add(*scopes))
    if may:
        who, may_keep = admitted(town.signer, token, "billing", operation, NOW)  # type: ignore[arg-type]
        assert (who.service, may_keep) == ("client.nightly", False)
    else:
        with pytest.raises(Forbidden, match=r"may not call billing\.charge: its|for services of"):
            admitted(town.signer, token, "billing", operation, NOW)  # type: ignore[arg-type]


def test_a_service_that_no_scope_names_is_refused_with_the_mend(town: Town) -> None:
    """The registry is for every client."""
    credential = town.add("orders")
    said = "may not call billing: its credential is for orders; .* client add NAME --scope billing"
    with pytest.raises(Forbidden, match=said):
        town.admit(signed(credential))
    assert town.admit(signed(credential, REGISTRY), REGISTRY).service == "client.nightly"


def test_a_credential_ends_on_its_day(town: Town) -> None:
    """Whatever it signs after that is refused, and says since when."""
    credential = town.add("billing", days=2)
    town.admit(signed(credential, now_us=NOW + 2 * DAY - 1), now_us=NOW + 2 * DAY - 1)
    with pytest.raises(Unauthenticated, match=r"'nightly' is expired, since 2027-01-17 08:00 UTC"):
        town.admit(signed(credential, now_us=NOW + 2 * DAY), now_us=NOW + 2 * DAY)


def test_a_credential_that_is_taken_back_is_refused_within_a_second(town: Town) -> None:
    """Also the token that was let in before; a new credential of the same name is another one."""
    credential = town.add("billing")
    token = signed(credential)
    town.admit(token)
    town.file(NOW + S).revoke("nightly", who="bob", why="lost")
    town.admit(token, now_us=NOW + 100_000)  # it is not looked yet
    with pytest.raises(Unauthenticated, match=r"'nightly' is revoked, since .* client add NAME"):
        town.admit(token, now_us=NOW + 600_000)
    (revoked,) = town.file().read()
    assert revoked.revoked is not None
    assert (revoked.revoked.who, revoked.revoked.why) == ("bob", "lost")
    assert (revoked.made.who, revoked.made.why) == ("ada", "tries")


def test_a_new_credential_is_good_at_once(town: Town) -> None:
    """A client that nobody knows yet is looked for in the file."""
    town.admit(signed(town.add("billing")))
    assert town.admit(signed(town.add("billing", name="ada"))).service == "client.ada"


def test_a_clock_that_is_set_back_delays_no_revocation(town: Town) -> None:
    """It is looked again where the clock is before the last look."""
    token = signed(town.add("billing"))
    town.admit(token)
    town.file(NOW).revoke("nightly", who="bob", why="lost")
    with pytest.raises(Unauthenticated, match="revoked"):
        town.admit(token, now_us=NOW - S)


def test_a_file_that_is_gone_lets_nobody_in_and_a_damaged_one_changes_nothing(town: Town) -> None:
    """What was read last holds; who starts with a damaged one lets no client in."""
    token = signed(town.add("billing"))
    town.admit(token)
    whole = town.path.read_bytes()
    town.path.write_bytes(whole[:-9])
    assert town.admit(token, now_us=NOW + S).service == "client.nightly"
    town.signer.clients = ClientBook(town.path, town.signer.client_keys)
    with pytest.raises(Unauthenticated, match="cannot be read here"):
        town.admit(token)
    town.path.write_bytes(whole)
    town.admit(token)
    os.unlink(town.path)
    with pytest.raises(Unauthenticated, match="has made no credential"):
        town.admit(token, now_us=NOW + S)


HEAD = {"alg": "HS256", "kid": "KID"}
CLAIMS = {"aud": "billing", "exp": NOW // S + 60}


@pytest.mark.parametrize(
    ("head", "claims", "said"),
    [
        ({**HEAD, "alg": "none"}, CLAIMS, "is not signed as one is"),
        ({**HEAD, "alg": "HS512"}, CLAIMS, "is not signed as one is"),
        ({**HEAD, "crit": ["b64"]}, CLAIMS, "is not signed as one is"),
        ({**HEAD, "kid": "../x"}, CLAIMS, "is not signed as one is"),
        ({**HEAD, "kid": "abcd"}, CLAIMS, "was not signed by a credential"),
        ({"alg": "HS256"}, CLAIMS, "cannot be read"),
        ("HS256", CLAIMS, "cannot be read"),
        (HEAD, {"aud": "billing"}, "cannot be read"),
        (HEAD, {**CLAIMS, "aud": ["billing"]}, "cannot be read"),
        (HEAD, {**CLAIMS, "exp": "soon"}, "cannot be read"),
        (HEAD, {**CLAIMS, "exp": 10**300}, "ends in more than"),
        (HEAD, {**CLAIMS, "exp": -(10**300)}, "has expired"),
        (HEAD, {**CLAIMS, "aud": "orders"}, "is for 'orders', and was shown to 'billing'"),
        (HEAD, {**CLAIMS, "exp": NOW // S - 6}, "has expired; sign another one"),
        (HEAD, {**CLAIMS, "exp": NOW // S + 306}, "ends in more than 300 s"),
    ],
)
def test_a_token_that_is_not_as_it_has_to_be_is_refused(
    town: Town, head: object, claims: object, said: str
) -> None:
    """No algorithm but one, a time within minutes, one audience, and a key of this system."""
    credential = town.add("billing", "orders")
    if isinstance(head, dict) and head.get("kid") == "KID":
        head = {**head, "kid": read_credential(credential)[0]}
    with pytest.raises(Unauthenticated, match=said):
        town.admit(jwt(credential, head, claims))


DEEP = base64.urlsafe_b64encode(b'{"x":' + b"[" * 3000 + b"]" * 3000 + b"}").decode()


@pytest.mark.parametrize(
    "token", ["..", "a.b.c", "é.é.é", "e30.e30.", "=.=.=", f"{DEEP}.e30.AA"], ids=range(6)
)
def test_what_is_no_token_is_refused(town: Town, token: str) -> None:
    """Nothing that a stranger sends is a failure of ours."""
    with pytest.raises(Unauthenticated, match="cannot be read"):
        town.admit(token)


def test_a_token_is_signed_anew_after_half_its_life(town: Town) -> None:
    """One for each audience is kept until then."""
    signer = ClientSigner(town.add("billing"))
    first = signer.token("", audience="billing", now_us=NOW)
    assert signer.token("", audience="billing", now_us=NOW + 29 * S) == first
    assert signer.token("", audience="billing", now_us=NOW + 30 * S) != first
    assert signer.token("", audience="orders", now_us=NOW) != first
    assert repr(signer) == f"<ClientSigner {signer.client_id}>"


@pytest.mark.parametrize("text", ["", "smc_a", "sm_abcd_" + "a" * 43, "smc_abcd_" + "a" * 42])
def test_what_is_no_credential_is_named_and_not_shown(text: str) -> None:
    """A secret that was cut off in copying is a secret still."""
    with pytest.raises(ConfigError, match=r"no credential of a client: \d+ characters") as refused:
        ClientSigner(text)
    assert not text or text not in refused.value.message


def test_a_client_has_one_credential_at_a_time(town: Town) -> None:
    """A second one is refused with the mend; after the first has ended its name is free."""
    town.add("billing")
    with pytest.raises(ConfigError, match="'nightly' has a credential that is active; take it ba"):
        town.add("billing")
    town.file().revoke("nightly", who="bob", why="lost")
    with pytest.raises(ConfigError, match="no client 'nightly' is active; those that are: none"):
        town.file().revoke("nightly", who="bob", why="lost")
    later = town.file(NOW + DAY)
    later.add("nightly", ["billing"], serves="", days=1, made=("a", "b"), rng=random.Random(2))
    assert [each.state(NOW + DAY) for each in later.read()] == ["revoked", "active"]


def test_what_has_ended_is_forgotten_after_a_year(town: Town) -> None:
    """Until then it is told who ended it."""
    town.add("billing", days=1)
    for name, days, kept in (("b", 365, 2), ("c", 367, 2)):
        file = town.file(NOW + days * DAY)
        file.add(name, ["x"], serves="", days=9, made=("a", "b"), rng=random.Random(name))
        assert len(file.read()) == kept


def test_the_file_is_for_its_user_alone(town: Town) -> None:
    """It has no secret, and says who may do what."""
    credential = town.add("billing")
    assert town.path.stat().st_mode & 0o777 == 0o600
    assert read_credential(credential)[1].hex() not in town.path.read_text()
    assert credential.rpartition("_")[2] not in town.path.read_text()
    town.path.chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others"):
        town.file().read()


@pytest.mark.parametrize(
    ("name", "scopes", "said"),
    [
        ("Nightly", ["billing"], "a name is 1 to 40 of a to z"),
        ("a.b", ["billing"], "a name is 1 to 40 of a to z"),
        ("a", ["billing:read"], "'billing:read' is no scope; write a service"),
        ("a", ["*"], "no scope"),
    ],
)
def test_a_grant_that_cannot_be_is_refused(
    town: Town, name: str, scopes: list[str], said: str
) -> None:
    """A caller's name begins what its keys are known by; nothing is written."""
    with pytest.raises(ConfigError, match=said):
        town.add(*scopes, name=name)
    assert town.file().read() == []


def test_times_of_the_file_need_a_zone(town: Town) -> None:
    """A time that could be any of 26 is refused."""
    town.add("billing")
    told = json.loads(town.path.read_text())
    told["clients"][0]["expires"] = dt.datetime(2027, 1, 1).isoformat()  # noqa: DTZ001
    town.path.write_text(json.dumps(told))
    with pytest.raises(ConfigError, match="expires has no time zone"):
        town.file().read()


@pytest.mark.parametrize(
    ("scopes", "serves", "said"),
    [
        (["orders"], "", "there is no service 'orders'; there are billing, rates"),
        (["billing.pay"], "", "billing has no operation 'pay'; it has charge, quote"),
        ([], "billing", r"only what synchromesh.toml names in \[system\] joined .* is rates"),
    ],
)
def test_what_the_system_does_not_have_is_no_scope(
    scopes: list[str], serves: str, said: str
) -> None:
    """A typing error is named before the credential is in use; what has joined is believed."""
    from synchromesh import Service

    services = [Service("billing", implements=Billing)]
    check_scopes(["billing.charge", "rates.any"], "rates", services, ["rates"])
    with pytest.raises(ConfigError, match=said):
        check_scopes(scopes, serves, services, ["rates"])


@pytest.mark.parametrize(
    ("scope", "line", "fields", "body", "status", "said"),
    [
        ("billing.quote", "POST /charges", [], b"{", 403, "may not call billing.charge: its cred"),
        ("billing.quote", "POST /charges", [("undoes", "k")], b"", 403, "may not call billing.ch"),
        ("billing", "POST /charges", [("undoes", "client.nightly/k")], b"", 403, "not undo it"),
        ("billing", "POST /charges", [], b"{", 400, ""),
        ("billing", "GET /quotes", [], b"", 200, ""),
    ],
)
def test_scopes_come_before_arguments_and_no_client_undoes(
    town: Town,
    scope: str,
    line: str,
    fields: list[tuple[str, str]],
    body: bytes,
    status: int,
    said: str,
) -> None:
    """Who may not call is told nothing of the arguments; what takes a command back is a saga's."""

    async def main(runtime: Runtime) -> None:
        now_us, ran, spans = runtime.wall_us(), [], MemoryRing()

        async def answer(_: Incoming) -> bytes:
            ran.append(line)
            return b"1"

        made = town.file(now_us).add(
            "nightly", (scope,), serves="", days=1, made=("ada", "tries"), rng=random.Random(1)
        )
        credential = credential_text(made.id, town.signer.client_key(made.id))
        dispatcher = Dispatcher(
            "billing",
            {"charge": answer, "quote": answer},
            signer=town.signer,
            tracer=Tracer("billing", runtime, spans),
            runtime=runtime,
        )
        edge = HttpEdge(runtime=runtime)
        edge.mount(dispatcher, operations_of(Billing).values())
        method, _, path = line.partition(" ")
        shown = ("synchromesh-credential", signed(credential, now_us=now_us))
        headers = Headers([shown, ("idempotency-key", "k"), *fields])
        answered = await edge(HttpRequest(method, path, path, "", headers, body))
        assert answered.status == status
        assert said in answered.body.decode()
        assert ran == ([line] if status == 200 else [])
        # What was let in has a span that a trace begins with, and the one of who handled it.
        told = [(each.kind, each.service) for each in spans]
        asked = [("client", "client.nightly"), ("handle", "billing")]
        assert told == (asked if status == 200 else [])
        assert [each.parent_id for each in spans][1:] == [each.span_id for each in spans][:-1]

    run(main)


class Away:
    """Makes the calls of a client whose system has gone."""

    def root(self, **_: object) -> None:
        return None

    async def call(self, _: object, **__: object) -> int:
        raise ConnectFailed("billing#1 could not be reached")


async def called(given: object, **more: str) -> object:
    """Call by a client whose system has gone since it was opened."""
    client = Client("http://127.0.0.1:1", credential=credential_text("abcd", b"0" * 32))
    client._caller = Away()  # type: ignore[assignment]
    return await client.call(given, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "trace_id", "said"),
    [
        ("billing.quote", "", "'billing.quote' is no call; give an operation of a contract with"),
        (None, "", "'None' is no call"),
        (Billing.quote, "", r"billing.quote was given without its arguments; .* quote\(\.\.\.\)"),
        (Billing.quote(), "ABC", "'ABC' is no trace id; make it 32 lower-case hex digits"),
        (Billing.quote(), "0" * 32, "is no trace id"),
        (Billing.quote(), "A" * 32, "is no trace id"),
    ],
)
def test_what_a_program_gives_wrong_is_said_plainly(
    given: object, trace_id: str, said: str
) -> None:
    """A name, an operation without arguments, and a trace id that is none are refused."""
    with pytest.raises(BadRequest, match=said):
        asyncio.run(called(given, trace_id=trace_id))


def test_a_system_that_has_gone_is_named_with_what_to_do() -> None:
    """The error has its class, and the mend once."""
    with pytest.raises(ConnectFailed) as failed:
        asyncio.run(called(Billing.quote()))
    assert failed.value.message == f"billing#1 could not be reached; {REMEDY}"
    assert str(failed.value) == failed.value.message


def test_there_are_no_clients_where_there_is_no_system(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every verb of `client` says so in the same words."""
    run_cli = runner(capsys)
    for words in (("list",), ("revoke", "x", "--why", "y"), ("add", "x", "--scope", "a")):
        ran = run_cli(tmp_path, "client", *words, *(["--why", "y"] if words[0] == "add" else []))
        assert (ran.code, "there is no synchromesh.toml in" in ran.err) == (2, True), words
    assert list(tmp_path.iterdir()) == []
