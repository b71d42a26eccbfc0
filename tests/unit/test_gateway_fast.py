"""The fast way of the gateway says what the slow one says, and lets nobody in that it would not."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bodies import everything
from forward_fakes import MiB, Way, answering, through
from gateway_fakes import came, came_as
from synchromesh.calls import Policies
from synchromesh.errors import Unauthenticated
from synchromesh.gateway import ApiKey, KeyRing, KeysFile, Principal, make_key, parse_keys
from synchromesh.gateway.answers import ALWAYS, TRACE
from synchromesh.gateway.fast import Gate
from synchromesh.gateway.forward import answer_of
from synchromesh.gateway.forward_heads import answer_head
from synchromesh.gateway.identifying import Identification
from synchromesh.gateway.leading import Leading, UpstreamPaths
from synchromesh.http import (
    Headers,
    HttpExchange,
    HttpRequest,
    HttpResponse,
    KeptFields,
    RawPair,
)
from synchromesh.http.message import encode_response
from synchromesh.http.together import TurnWrites
from synchromesh.resilience import Policy, RetryOptions
from synchromesh.runtime import Runtime
from synchromesh.testing import run
from synchromesh.watched import WatchedFile

RNG = random.Random(1)
TEXT, KEY = make_key("shop", ["orders:write"], rng=RNG)
NAMES = (
    "age", "cache-control", "connection", "content-type", "date", "deadline-ms", "keep-alive",
    "link", "location", "set-cookie", "synchromesh-partial", "synchromesh-trace", "te",
    "traceparent", "x-a", "x-b", "x-content-type-options",
)  # fmt: skip
WAYS = UpstreamPaths()
WAYS.add("/app/{path...}", "/{path...}")
LEADING = Leading((WAYS,), "http://10.0.0.7")
VALUES = (
    "",
    "a",
    "http://10.0.0.7/a",
    "<http://10.0.0.7>, </b>",
    "id=1; path=/",
    "close",
    "keep-alive",
    "no-cache",
    "x-a",
    "X-B, close",
    "\xe9",
)
PAIRS = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES)), max_size=8)


@given(PAIRS, st.sampled_from([200, 204, 206, 304, 404]))
def test_both_ways_give_the_same_head(pairs: list[tuple[str, str]], status: int) -> None:
    """What passes of an answer, and what is said in its stead, is the same set of lines."""
    response = answer_of(HttpResponse(status, pairs), [*ALWAYS, (TRACE, "0" * 32)], LEADING)
    slow = encode_response(response, is_head=False, is_last=False)
    raw = [(name.encode(), value.encode("latin-1")) for name, value in pairs]
    fast = answer_head(status, raw, "0" * 32, 0, b"", LEADING)
    assert sorted(fast.split(b"\r\n")) == sorted(slow.removesuffix(b"\r\n").split(b"\r\n"))


def with_ring(main: Callable[[KeyRing], Coroutine[Any, Any, None]], **more: Any) -> None:
    """Run a test with a ring of one key, in virtual time."""

    async def simulated(runtime: Runtime) -> None:
        ring = KeyRing({KEY.id: KEY}, runtime, **more)
        await main(ring)
        await ring.close()

    run(simulated)


def field(name: str, value: str) -> list[RawPair]:
    return [(b"host", b"x"), (name.encode(), value.encode())]


def test_only_a_valid_key_that_is_alone_is_known_at_once() -> None:
    """Anything else that looks like a credential is left to the slow way (G1)."""

    async def main(ring: KeyRing) -> None:
        shop = Principal("shop", frozenset(KEY.scopes), "key")
        assert ring.known(came_as(field("x-api-key", TEXT))) == shop
        assert ring.known(came_as(field("authorization", f"Bearer {TEXT}"))) == shop
        assert ring.known(came_as(field("authorization", f"bEARER  {TEXT} "))) == shop
        assert ring.known(came_as(field("x-api-key", f"Bearer {TEXT}"))) is None
        assert ring.known(came_as(field("x-api-key", f"{TEXT}\n"))) is None
        assert ring.known(came_as(field("x-api-key", f"sm_{KEY.id}_{'A' * 43}"))) is None
        assert ring.known(came_as(field("x-api-key", TEXT[:-1]))) is None
        assert ring.known(came_as(field("authorization", TEXT))) is None
        assert (
            ring.known(came_as([*field("x-api-key", TEXT), (b"authorization", b"Basic x")])) is None
        )
        assert ring.known(came_as([*field("x-api-key", TEXT), (b"x-api-key", b"")])) is None
        assert ring.known(came_as([(b"host", b"x")])) is None

    with_ring(main)


def test_a_verdict_ends_with_its_key(tmp_path: Path) -> None:
    """A key that has gone from the file is not known from the next look on."""
    path = tmp_path / "keys.json"
    path.write_bytes(msgspec.json.encode(KeysFile((KEY,))))

    def read(path: Path) -> dict[str, ApiKey]:
        return parse_keys(path.read_bytes(), "the file")

    async def main(ring: KeyRing) -> None:
        assert ring.known(came_as(field("x-api-key", TEXT))) is not None
        path.write_bytes(msgspec.json.encode(KeysFile(())))
        ring.refresh()
        assert ring.known(came_as(field("x-api-key", TEXT))) is None

    with_ring(main, file=WatchedFile(path, "the keys", read))


def test_a_verdict_ends_when_its_key_expires() -> None:
    """The time of a key is looked at with every request."""

    async def simulated(runtime: Runtime) -> None:
        expires = dt.datetime.fromtimestamp(runtime.wall_us() / 1e6 + 60, dt.UTC)
        key = ApiKey(KEY.id, KEY.principal, KEY.hash, KEY.scopes, expires)
        ring = KeyRing({key.id: key}, runtime)
        assert ring.known(came_as(field("x-api-key", TEXT))) is not None
        await asyncio.sleep(61)
        assert ring.known(came_as(field("x-api-key", TEXT))) is None
        with pytest.raises(Unauthenticated):
            await ring.authenticate(came(Headers([("x-api-key", TEXT)])))
        await ring.close()

    run(simulated)


def test_a_verdict_that_fields_keep_ends_with_its_key(tmp_path: Path) -> None:
    """The same fields of a connection are verified once, and not beyond the key's own end."""
    path = tmp_path / "keys.json"
    path.write_bytes(msgspec.json.encode(KeysFile((KEY,))))

    def read(path: Path) -> dict[str, ApiKey]:
        return parse_keys(path.read_bytes(), "the file")

    async def simulated(runtime: Runtime) -> None:
        kept = KeptFields(field("x-api-key", TEXT), b"as they came", 0)
        ring = KeyRing(read(path), runtime, file=WatchedFile(path, "the keys", read))
        known = Identification([ring]).known()
        assert known(came_as(kept)) is known(came_as(kept)) is not None
        assert Identification([]).known()(came_as(kept)) is None
        assert Identification([KeyRing({}, runtime)]).known()(came_as(kept)) is None
        assert Identification([ring]).known({"token"})(came_as(kept)) is None
        path.write_bytes(msgspec.json.encode(KeysFile(())))
        ring.refresh()
        assert known(came_as(kept)) is None
        ends = dt.datetime.fromtimestamp(runtime.wall_us() / 1e6 + 60, dt.UTC)
        ring.add(ApiKey(KEY.id, KEY.principal, KEY.hash, KEY.scopes, ends))
        assert known(came_as(kept)) is known(came_as(kept)) is not None
        await asyncio.sleep(61)
        assert known(came_as(kept)) is None
        ring.replace({KEY.id: KEY})
        assert known(came_as(kept)) is known(came_as(kept)) is not None
        ring.replace({})
        assert known(came_as(kept)) is None

    run(simulated)


def test_an_application_s_own_is_asked_before_a_verdict_that_is_kept() -> None:
    """Nobody knows what it may come to know; what stands behind it is never asked first."""

    class Own:
        """Knows everybody, once it is told to."""

        who: Principal | None = None

        def known(self, exchange: HttpExchange) -> Principal | None:
            return self.who

        async def authenticate(self, request: HttpRequest) -> Principal | None:
            return self.who

        def refresh(self) -> None: ...
        async def close(self) -> None: ...

    async def main(ring: KeyRing) -> None:
        own, kept = Own(), KeptFields(field("x-api-key", TEXT), b"as they came", 0)
        before, behind = Identification([ring, own]).known(), Identification([own, ring]).known()
        found = [before(came_as(kept)), behind(came_as(kept))]
        own.who = Principal("session")
        found += [before(came_as(kept)), behind(came_as(kept))]
        assert [each and each.name for each in found] == ["shop", "shop", "shop", "session"]

    with_ring(main)


def test_what_comes_again_is_passed_on_as_it_came_first() -> None:
    """Request and answer, and what is said of both; another field in between changes its own."""

    async def main(way: Way) -> None:
        asked = [
            ("a", ""),
            ("a", ""),
            ("a", ""),
            ("b", "r-1"),
            ("b", "r-1"),
            ("b", "r-2"),
            ("a", ""),
        ]
        told = []
        for number, (accept, name) in enumerate(asked):
            way.store.answer = answering(200, b"whole", (("etag", f'"{accept}"'), ("x-n", accept)))
            headers = {"accept": accept, **({"x-request-id": name} if name else {})}
            answer = await way.ask("GET /firmware/a", headers=headers)
            got = way.store.seen[number].request
            assert got.headers.get_all("accept") == (accept,)
            assert got.headers.get_all("x-request-id") == ((name,) if name else ())
            assert answer.headers.get_all("x-n") == (accept,)
            assert answer.headers.get_all("x-request-id") == ((name,) if name else ())
            assert answer.headers.get_all("cache-control") == ("no-store",)
            told.append(answer.headers.get("synchromesh-trace"))
            assert got.headers.get("traceparent", "")[3:35] == told[-1]
        assert len(set(told)) == len(asked)

    through(main)


def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return what the fast way says to each request from now on: True where it takes it."""
    said: list[bool] = []
    begin = Gate.begin

    def noted(gate: Gate, exchange: HttpExchange) -> bool:
        said.append(begin(gate, exchange))
        return said[-1]

    monkeypatch.setattr(Gate, "begin", noted)
    return said


def test_a_plain_request_takes_the_fast_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """So do all that the suites of both ways ask so; a key or an option needs the slow one."""
    said = taken(monkeypatch)

    async def main(way: Way) -> None:
        for headers in (
            {},
            {"idempotency-key": "k"},
            {"x-forwarded-for": "10.0.0.1"},
            {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "x-request-id": "r-1"},
        ):
            assert (await way.ask("GET /firmware/a", headers=headers)).status == 201

    through(main)
    assert said == [True, False, True, True]


def test_the_last_56_bits_of_a_trace_are_random() -> None:
    """As the flag of its traceparent says: samplers decide by them (W3C Trace Context, level 2)."""
    traces: list[int] = []

    async def main(way: Way) -> None:
        for _ in range(60):
            answer = await way.ask("GET /firmware/a")
            traces.append(int(answer.headers.get("synchromesh-trace", ""), 16))

    through(main)
    for bit in range(56):
        assert {trace >> bit & 1 for trace in traces} == {0, 1}


def test_a_failed_attempt_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the slow way, on another instance, under the same trace; nothing stays taken."""
    said = taken(monkeypatch)

    async def main(way: Way) -> None:
        answers = iter([answering(503), answering(200, b"whole")])

        def answer_next(request: HttpRequest) -> AbstractAsyncContextManager[HttpResponse]:
            return next(answers)(request)

        way.store.answer = answer_next
        answer = await way.ask("GET /firmware/a")
        assert (answer.status, answer.body) == (200, b"whole")
        first, second = (seen.request.headers.get("traceparent", "") for seen in way.store.seen)
        assert first == second
        assert answer.headers.get("synchromesh-trace", "?") in first
        await asyncio.sleep(0.1)
        assert "0 in flight" in repr(way.engine)
        gateway, call = sorted(way.system.spans, key=lambda span: span.kind, reverse=True)
        assert (gateway.kind, gateway.status, call.parent_id) == ("gateway", "ok", gateway.span_id)
        assert (call.status, call.attributes["attempts"]) == ("ok", "2")

    through(main, policies=Policies(default=Policy(retry=RetryOptions(base_s=0.01))))
    assert said == [True]


def test_a_long_answer_comes_as_its_client_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not read holds the upstream up, and has all of it in the end."""
    said = taken(monkeypatch)

    async def main(way: Way) -> None:
        way.store.answer = answering(200, bytes(8 * MiB))
        async with way.asking("GET /firmware/a") as answer:
            await asyncio.sleep(3.0)
            assert way.store.ends == []
            assert await everything(answer.stream) == bytes(8 * MiB)
        assert "0 in flight" in repr(way.engine)

    through(main)
    assert said == [True]


def test_writes_of_a_turn_are_made_at_its_end_in_order() -> None:
    """What is added within a turn of the loop is written once all its events were handled."""
    written: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        together = TurnWrites(loop)
        for name in "ab":
            loop.call_soon(together.add, partial(written.append, name))
            loop.call_soon(written.append, f"handled {name}")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        together.add(lambda: written.append("c"))
        await asyncio.sleep(0)

    asyncio.run(main())
    assert written == ["handled a", "handled b", "a", "b", "c"]
