"""API keys: their file, and who is known by one."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import logging
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway_fakes import came
from synchromesh.errors import ConfigError, Unauthenticated
from synchromesh.gateway import (
    ApiKey,
    ApiKeys,
    Folders,
    KeyRing,
    Principal,
    make_key,
    parse_keys,
)
from synchromesh.http import Headers
from synchromesh.runtime import Runtime
from synchromesh.testing import run

RNG = random.Random(1)
TEXT, KEY = make_key("shop", ["orders:write", "fleet:read"], rng=RNG)
OTHER_TEXT, OTHER = make_key("visitor", [], rng=RNG)
NOBODY = make_key("shop", [], rng=RNG)[0]
SECRET = TEXT.rpartition("_")[2]


def bearer(text: str) -> Headers:
    return Headers([("authorization", f"Bearer {text}")])


def with_ring(
    main: Callable[[KeyRing], Coroutine[Any, Any, None]],
    *,
    keys: tuple[ApiKey, ...] = (KEY, OTHER),
) -> None:
    """Run a test with a ring of keys, in virtual time."""

    async def simulated(runtime: Runtime) -> None:
        ring = KeyRing({key.id: key for key in keys}, runtime)
        await main(ring)
        await ring.close()

    run(simulated)


# -- who is known ------------------------------------------------------------------------------


WRONG = {
    "another secret": f"sm_{KEY.id}_{'A' * 43}",
    "one letter less": TEXT[:-1],
    "one letter more": f"{TEXT}A",
    "the other's secret": f"sm_{KEY.id}_{OTHER_TEXT.rpartition('_')[2]}",
    "an unknown id": NOBODY,
    "no secret": f"sm_{KEY.id}_",
    "the hash itself": f"sm_{KEY.id}_{KEY.hash.rpartition(':')[2]}",
    "a line more": f"{TEXT}\t",
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_key_is_refused(text: str) -> None:
    """Nobody is known by a key that was not made for them, whole and letter by letter."""

    async def main(ring: KeyRing) -> None:
        for headers in (bearer(text), Headers([("x-api-key", text)])):
            with pytest.raises(Unauthenticated) as refused:
                await ring.authenticate(came(headers))
            assert text.strip() not in str(refused.value)

    with_ring(main)


def test_a_principal_is_known_by_either_header() -> None:
    """A key says who asks and what they may do, as a bearer token or in a header of its own."""

    async def main(ring: KeyRing) -> None:
        shop = Principal("shop", frozenset({"orders:write", "fleet:read"}), "key")
        assert await ring.authenticate(came(bearer(TEXT))) == shop
        assert await ring.authenticate(came(Headers([("x-api-key", TEXT)]))) == shop
        assert (
            await ring.authenticate(came(Headers([("authorization", f"bearer  {TEXT}")]))) == shop
        )
        other = await ring.authenticate(came(bearer(OTHER_TEXT)))
        assert other == Principal("visitor", kind="key")

    with_ring(main)


def test_what_is_no_api_key_is_left_to_others() -> None:
    """No credential, another scheme and another kind of token are not this ring's to refuse."""

    async def main(ring: KeyRing) -> None:
        for value in ("Basic c2hvcDpwdw==", "Bearer eyJhbGciOi.e30.x", "Bearer", TEXT, ""):
            assert await ring.authenticate(came(Headers([("authorization", value)]))) is None
        assert await ring.authenticate(came(Headers())) is None

    with_ring(main)


def test_two_credentials_are_refused() -> None:
    """Where two credentials came it is unclear who asks, even if one of them is right."""

    async def main(ring: KeyRing) -> None:
        for second in (("x-api-key", TEXT), ("authorization", f"Bearer {TEXT}")):
            with pytest.raises(Unauthenticated, match="several"):
                await ring.authenticate(
                    came(Headers([("authorization", f"Bearer {TEXT}"), second]))
                )

    with_ring(main)


def test_a_key_ends_with_its_time() -> None:
    """An expired key is refused, also where it was verified before."""

    async def simulated(runtime: Runtime) -> None:
        ends = dt.datetime.fromtimestamp(runtime.wall_us() / 1e6 + 60, dt.UTC)
        text, key = make_key("shop", [], rng=RNG, expires=ends)
        ring = KeyRing({key.id: key}, runtime)
        assert await ring.authenticate(came(bearer(text))) is not None
        await asyncio.sleep(61)
        with pytest.raises(Unauthenticated, match="expired"):
            await ring.authenticate(came(bearer(text)))
        await ring.close()

    run(simulated)


def test_a_flood_of_wrong_keys_locks_nobody_out(caplog: pytest.LogCaptureFixture) -> None:
    """However many wrong secrets of however few ids are tried, a valid key is known at once.

    Whoever asks first, and whose id it is that is guessed at, makes no difference; nor does a wrong
    key fill the log.
    """

    async def main(ring: KeyRing) -> None:
        loop, rng = asyncio.get_running_loop(), random.Random(2)
        guesses = [
            asyncio.ensure_future(
                ring.authenticate(came(bearer(f"sm_{key_id}_{make_secret(rng)}")))
            )
            for key_id in (KEY.id, OTHER.id, "unknown1")
            for _ in range(400)
        ]
        began_s = loop.time()
        principal = await ring.authenticate(came(bearer(TEXT)))
        assert principal is not None
        assert principal.name == "shop"
        assert loop.time() == began_s
        ends = await asyncio.gather(*guesses, return_exceptions=True)
        assert {type(end) for end in ends} == {Unauthenticated}

    with caplog.at_level(logging.DEBUG, "synchromesh"):
        with_ring(main)
    assert not caplog.records


def make_secret(rng: random.Random) -> str:
    return make_key("nobody", [], rng=rng)[0].rpartition("_")[2]


def test_a_hash_is_of_no_use_under_another_id() -> None:
    """Who can write another entry into the file gains nothing from a hash that is there."""
    copied = ApiKey("copied12", "admin", KEY.hash, KEY.scopes)

    async def main(ring: KeyRing) -> None:
        with pytest.raises(Unauthenticated):
            await ring.authenticate(came(bearer(f"sm_{copied.id}_{SECRET}")))

    with_ring(main, keys=(KEY, copied))


@pytest.mark.parametrize("text", ["sm_\xff" + "A" * 60, "sm_" + "a" * 100_000])
def test_an_odd_key_is_refused_as_any(text: str) -> None:
    """What no key can hold is a wrong key, whatever the alphabet and the length."""

    async def main(ring: KeyRing) -> None:
        with pytest.raises(Unauthenticated):
            await ring.authenticate(came(bearer(text)))

    with_ring(main)


def test_no_key_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    """No secret and no hash is in a log, a repr or an error."""
    shown: list[str] = []

    async def main(ring: KeyRing) -> None:
        await ring.authenticate(came(bearer(TEXT)))
        with pytest.raises(Unauthenticated) as refused:
            await ring.authenticate(came(bearer(TEXT[:-1])))
        shown.extend([repr(ring), str(refused.value), repr(refused.value.__cause__)])

    with caplog.at_level(logging.DEBUG):
        with_ring(main)
    shown += [repr(KEY), repr(bearer(TEXT)), caplog.text]
    assert not any(SECRET[:-1] in text or KEY.hash in text for text in shown)


# -- the file ----------------------------------------------------------------------------------


def file_of(*keys: ApiKey) -> bytes:
    return msgspec.json.encode({"keys": keys})


def edited(**fields: object) -> bytes:
    entry = msgspec.to_builtins(KEY) | fields
    return msgspec.json.encode({"keys": [entry]})


DIGEST = KEY.hash.partition(":")[2]
MISTAKES = {
    "no JSON": (b"{", "cannot be read"),
    "no UTF-8": (b"\xff", "cannot be read"),
    "no object": (b"[]", "cannot be read"),
    "an unknown field": (edited(scope="a"), "unknown field `scope`"),
    "no hash": (b'{"keys":[{"id":"abcd","principal":"x"}]}', "field `hash`"),
    "an id in capitals": (edited(id="ABCD"), "key 1 ('ABCD'): an id is 4 to 32"),
    "no principal": (edited(principal=""), "the principal is 1 to 128"),
    "a principal of two lines": (edited(principal="a\nb"), "the principal is 1 to 128"),
    "a wrong scope": (edited(scopes=["a b"]), "'a b' is no scope"),
    "too many scopes": (
        edited(scopes=[f"scope:number-{number}" for number in range(300)]),
        "the principal and its scopes are longer than 4096 bytes",
    ),
    "no time zone": (edited(expires="2030-01-01T00:00:00"), "has no time zone"),
    "a key in plain text": (edited(hash=TEXT), "the hash is no sha256"),
    "a hash of nothing": (edited(hash=""), "the hash is no sha256"),
    "another kind of hash": (
        edited(hash=f"scrypt:16384:8:1:{'A' * 22}:{'A' * 43}"),
        "make the key anew",
    ),
    "half a hash": (edited(hash=KEY.hash[:-8]), "the hash is no sha256"),
    "a hash and more": (edited(hash=f"{KEY.hash}\n"), "the hash is no sha256"),
    "no hexadecimal": (edited(hash=KEY.hash[:-1] + "g"), "the hash is no sha256"),
    "an id twice": (file_of(KEY, KEY), "key 2"),
}


@pytest.mark.parametrize(("data", "words"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_in_the_file_is_named(data: bytes, words: str) -> None:
    """What is wrong with a file of keys is said with the key's place, and without its hash."""
    with pytest.raises(ConfigError) as refused:
        parse_keys(data, "keys.json")
    assert words in refused.value.message
    assert "keys.json" in refused.value.message
    assert SECRET not in refused.value.message
    assert DIGEST not in refused.value.message


def test_all_mistakes_of_a_file_are_named() -> None:
    """Two wrong keys are two sentences of one error."""
    with pytest.raises(ConfigError, match=r"key 1 .*; key 2 "):
        parse_keys(file_of(msgspec.structs.replace(KEY, id="X"), ApiKey("Y", "b", KEY.hash)), "f")


def test_a_key_outlives_its_file() -> None:
    """What was written is read, and its key is known again; the text is in no file."""
    keys = parse_keys(file_of(KEY, OTHER), "keys.json")
    assert keys == {KEY.id: KEY, OTHER.id: OTHER}
    assert SECRET.encode() not in file_of(KEY)
    # As any tool tells it: printf %s "$KEY" | sha256sum
    assert hashlib.sha256(TEXT.encode()).hexdigest() == DIGEST


def test_keys_are_opened_from_a_folder(tmp_path: Path) -> None:
    """`ApiKeys` reads its file of the folder that it is given, and says where none is."""

    async def simulated(runtime: Runtime) -> None:
        with pytest.raises(ConfigError, match="api-keys"):
            ApiKeys().open(Folders(tmp_path, tmp_path), runtime)
        (tmp_path / "api-keys.json").write_bytes(file_of(KEY))
        ring = ApiKeys().open(Folders(tmp_path, tmp_path), runtime)
        assert await ring.authenticate(came(bearer(TEXT))) is not None
        await ring.close()
        await ring.close()

    run(simulated)


# -- a file that changes -----------------------------------------------------------------------


def keys_in(path: Path, *keys: ApiKey) -> None:
    """Write a file of keys as a command would: whole, and as another file."""
    new = path.with_suffix(".new")
    new.write_bytes(msgspec.json.encode({"keys": keys}))
    new.replace(path)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    """A new key counts and a removed one does not, whether it was used before or not."""
    path = tmp_path / "api-keys.json"
    keys_in(path, KEY)

    async def simulated(runtime: Runtime) -> None:
        ring = ApiKeys().open(Folders(tmp_path, tmp_path), runtime)
        assert await ring.authenticate(came(bearer(TEXT))) is not None
        with pytest.raises(Unauthenticated):
            await ring.authenticate(came(bearer(OTHER_TEXT)))
        keys_in(path, OTHER)
        ring.refresh()
        assert await ring.authenticate(came(bearer(OTHER_TEXT))) is not None
        with pytest.raises(Unauthenticated):
            await ring.authenticate(came(bearer(TEXT)))
        await ring.close()

    run(simulated)


@pytest.mark.parametrize("damage", ["{", '{"keys": [{"id": "x"}]}', None])
def test_a_damaged_file_changes_no_key(
    tmp_path: Path, damage: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Who was known stays known where the file is damaged or gone; it is said once."""
    path = tmp_path / "api-keys.json"
    keys_in(path, KEY)

    async def simulated(runtime: Runtime) -> None:
        ring = ApiKeys().open(Folders(tmp_path, tmp_path), runtime)
        path.unlink() if damage is None else path.write_text(damage)
        ring.refresh()
        ring.refresh()
        assert await ring.authenticate(came(bearer(TEXT))) is not None
        await ring.close()

    run(simulated)
    (record,) = caplog.records
    assert "stay as they were" in record.message
