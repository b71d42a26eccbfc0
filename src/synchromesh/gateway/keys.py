"""API keys, and the file of their hashes.

    {"keys": [{"id": "k3v9...", "principal": "shop", "scopes": ["orders:write"],
               "hash": "scrypt:16384:8:1:<salt>:<hash>", "expires": "2027-01-01T00:00:00Z"}]}

A key is `sm_<id>_<secret>`: the id finds its entry, the secret is 256 random bits and is in no
file. Source: RFC 7914 (scrypt).
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import hmac
import random
import re
from collections.abc import Iterable

import msgspec

from synchromesh.errors import ConfigError

PREFIX = "sm_"
# As RFC 7914 suggests for interactive use; 16 MiB and some 40 ms.
COST = 16_384
_BLOCK, _PARALLEL = 8, 1
_COST_RANGE = (1024, 131_072)
_KEY = re.compile(r"sm_([a-z0-9]{4,32})_([A-Za-z0-9_-]{43})")
_ID = re.compile(r"[a-z0-9]{4,32}")
_SCOPE = re.compile(r"[a-z][a-z0-9_.-]*(:[a-z0-9_.*-]+)*")
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


class ApiKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An entry of the file: the principal, its scopes, and the hash of its key.

    Attributes:
        id: the part of the key that is no secret.
        principal: who the key stands for; several keys may stand for one.
        scopes: what they may do.
        hash: `scrypt:<cost>:<block>:<parallel>:<salt>:<hash>`, both in base64url.
        expires: when it ends, with a time zone; None for never.
    """

    id: str
    principal: str
    hash: str
    scopes: tuple[str, ...] = ()
    expires: dt.datetime | None = None

    def is_expired(self, wall_us: int) -> bool:
        """True once its time is over."""
        return self.expires is not None and self.expires.timestamp() * 1e6 <= wall_us

    def __repr__(self) -> str:
        return f"<ApiKey {self.id} of {self.principal}>"


class KeysFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file of keys."""

    keys: tuple[ApiKey, ...] = ()


def is_scope(text: object) -> bool:
    """Return whether a text is a valid scope, such as "orders:write"."""
    return isinstance(text, str) and bool(_SCOPE.fullmatch(text))


def make_key(
    principal: str,
    scopes: Iterable[str],
    *,
    rng: random.Random,
    expires: dt.datetime | None = None,
    cost: int = COST,
) -> tuple[str, ApiKey]:
    """Generate a key; return its text, to be shown once and not stored, and its entry.

    Args:
        principal: who it stands for.
        scopes: what they may do.
        rng: the source of the secret; `RealRuntime().secret_rng` in the real world.
        expires: when it ends.
        cost: of the hash, a power of two.

    Example:
        >>> text, key = make_key("shop", ["orders:write"], rng=random.Random(1), cost=1024)
        >>> text.startswith(f"sm_{key.id}_"), is_key(text[-43:], key), key.principal
        (True, True, 'shop')
    """
    key_id = "".join(rng.choice(_ALPHABET) for _ in range(12))
    secret = _text(rng.randbytes(32))
    salt = rng.randbytes(16)
    hashed = _scrypt(secret, salt, (cost, _BLOCK, _PARALLEL))
    stored = f"scrypt:{cost}:{_BLOCK}:{_PARALLEL}:{_text(salt)}:{_text(hashed)}"
    entry = ApiKey(key_id, principal, stored, tuple(sorted(scopes)), expires)
    return f"{PREFIX}{key_id}_{secret}", entry


def split_key(text: str) -> tuple[str, str] | None:
    """Return id and secret of a key's text; None where it is no such text."""
    matched = _KEY.fullmatch(text)
    return None if matched is None else (matched[1], matched[2])


def is_key(secret: str, key: ApiKey) -> bool:
    """Verify a secret against an entry; slow on purpose."""
    cost, salt, expected = _parse_hash(key.hash)
    return hmac.compare_digest(_scrypt(secret, salt, cost), expected)


def parse_keys(data: bytes, where: str) -> dict[str, ApiKey]:
    """Return the keys of a file by id.

    Raises:
        ConfigError: the file is wrong; every mistake is named, and no hash.
    """
    try:
        keys = msgspec.json.decode(data, type=KeysFile).keys
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"the API keys in {where} cannot be read: {error}") from error
    mistakes: list[str] = []
    found: dict[str, ApiKey] = {}
    for number, key in enumerate(keys, 1):
        at = f"key {number} ({key.id[:40]!r})"
        if not _ID.fullmatch(key.id):
            mistakes.append(f"{at}: an id is 4 to 32 lower-case letters and digits")
        elif key.id in found:
            mistakes.append(f"{at}: the id is there twice; give each key its own")
        if not 0 < len(key.principal) <= 128 or not key.principal.isprintable():
            mistakes.append(f"{at}: the principal is 1 to 128 printable characters")
        wrong = [scope for scope in key.scopes if not is_scope(scope)]
        if wrong:
            mistakes.append(f'{at}: {wrong[0][:40]!r} is no scope; write one such as "orders:read"')
        if key.expires is not None and key.expires.tzinfo is None:
            mistakes.append(f'{at}: expires has no time zone; write it such as "...T00:00:00Z"')
        try:
            _parse_hash(key.hash)
        except ValueError:
            mistakes.append(f"{at}: the hash is no scrypt:cost:block:parallel:salt:hash")
        found[key.id] = key
    if mistakes:
        raise ConfigError(f"the API keys in {where} are wrong: {'; '.join(mistakes)}")
    return found


def _parse_hash(stored: str) -> tuple[tuple[int, int, int], bytes, bytes]:
    """Return cost, salt and hash. Raises ValueError."""
    kind, cost, block, parallel, salt, hashed = stored.split(":")
    n, r, p = int(cost), int(block), int(parallel)
    low, high = _COST_RANGE
    # Bounded, so that no file can make one verification take the machine's memory.
    if kind != "scrypt" or not low <= n <= high or n & (n - 1) or not (1 <= r <= 8 and 1 <= p <= 4):
        raise ValueError("unknown or out of bounds")
    found = _bytes(salt), _bytes(hashed)
    if len(found[0]) < 16 or len(found[1]) != 32:
        raise ValueError("a salt of 16 bytes or more and a hash of 32 are expected")
    return (n, r, p), *found


def _scrypt(secret: str, salt: bytes, cost: tuple[int, int, int]) -> bytes:
    n, r, p = cost
    return hashlib.scrypt(
        secret.encode(), salt=salt, n=n, r=r, p=p, maxmem=256 * r * (n + p + 2), dklen=32
    )


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError("no base64url") from error
