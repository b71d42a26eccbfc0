"""API keys, and the file of their hashes.

    {"keys": [{"id": "k3v9...", "principal": "shop", "scopes": ["orders:write"],
               "hash": "sha256:<64 hex digits>", "expires": "2027-01-01T00:00:00Z"}]}

A key is `sm_<id>_<secret>`: the id finds its entry, the secret is 256 random bits and is in no
file. What is hashed is the whole of it, so that a hash is of no use under another id. The hash is a
fast one: there is nothing to guess (docs/adr/0030).
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import random
import re
from collections.abc import Iterable

import msgspec

from synchromesh.errors import ConfigError
from synchromesh.identity import PRINCIPAL_BYTES_MAX, Principal

PREFIX = "sm_"
# Of a credential, as `Principal.kind` says.
KIND = "key"
_ID = re.compile(r"[a-z0-9]{4,32}")
_SCOPE = re.compile(r"[a-z][a-z0-9_.-]*(:[a-z0-9_.*-]+)*")
_HASH = re.compile(r"sha256:([0-9a-f]{64})")
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


class ApiKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An entry of the file: the principal, its scopes, and the hash of its key.

    Attributes:
        id: the part of the key that is no secret.
        principal: who the key stands for; several keys may stand for one.
        scopes: what they may do.
        hash: `sha256:` and the SHA-256 of the key's whole text, in hex.
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
) -> tuple[str, ApiKey]:
    """Generate a key; return its text, to be shown once and not stored, and its entry.

    Args:
        principal: who it stands for.
        scopes: what they may do.
        rng: the source of the secret; `RealRuntime().secret_rng` in the real world.
        expires: when it ends.

    Example:
        >>> text, key = make_key("shop", ["orders:write"], rng=random.Random(1))
        >>> text.startswith(f"sm_{key.id}_"), key.principal
        (True, 'shop')
    """
    key_id = "".join(rng.choice(_ALPHABET) for _ in range(12))
    secret = base64.urlsafe_b64encode(rng.randbytes(32)).rstrip(b"=").decode()
    text = f"{PREFIX}{key_id}_{secret}"
    stored = f"sha256:{hash_of(text.encode()).hex()}"
    return text, ApiKey(key_id, principal, stored, tuple(sorted(scopes)), expires)


def hash_of(text: bytes) -> bytes:
    """Return what stands for the whole text of a key: 32 bytes."""
    return hashlib.sha256(text).digest()


def stored_hash(key: ApiKey) -> bytes:
    """Return the hash of an entry. Raises ValueError."""
    matched = _HASH.fullmatch(key.hash)
    if matched is None:
        raise ValueError("64 hex digits behind sha256: are expected")
    return bytes.fromhex(matched[1])


def parse_keys(data: bytes, where: str) -> dict[str, ApiKey]:
    """Return the keys of a file by id.

    Raises:
        ConfigError: the file is wrong; every mistake is named, and no hash.

    Example:
        >>> _, key = make_key("shop", ["orders:write"], rng=random.Random(1))
        >>> found = parse_keys(msgspec.json.encode(KeysFile((key,))), "api-keys.json")
        >>> [each.principal for each in found.values()]
        ['shop']
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
        if not wrong and not Principal(key.principal, frozenset(key.scopes), KIND).is_short():
            mistakes.append(
                f"{at}: the principal and its scopes are longer than {PRINCIPAL_BYTES_MAX} bytes "
                "of JSON, and travel with every call; give it fewer scopes"
            )
        if key.expires is not None and key.expires.tzinfo is None:
            mistakes.append(f'{at}: expires has no time zone; write it such as "...T00:00:00Z"')
        try:
            stored_hash(key)
        except ValueError:
            mistakes.append(
                f"{at}: the hash is no sha256:<64 hex digits>; make the key anew with "
                "`synchromesh gateway key add`"
            )
        found[key.id] = key
    if mistakes:
        raise ConfigError(f"the API keys in {where} are wrong: {'; '.join(mistakes)}")
    return found
