"""API keys that several gateways share: what was ever made, and what was ever removed.

Both only grow, so that any two states are put together into one, in any order and as often as one
likes: an old state that is put back removes no key and brings none back. A pure machine.

Source: M. Shapiro et al., "A comprehensive study of Convergent and Commutative Replicated Data
Types", INRIA RR-7506, 2011: the 2P-set.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from synchromesh.errors import ConfigError
from synchromesh.gateway.keys import ApiKey, KeysFile, parse_keys


class SharedKeys(msgspec.Struct, frozen=True, omit_defaults=True):
    """The keys of a system, as its gateways know them.

    Attributes:
        keys: those that are good, by id.
        removed: the ids of those that are not any more; none of them comes back.

    Example:
        >>> made = ApiKey("k3v9", "shop", "sha256:" + 64 * "0")
        >>> gone = SharedKeys((made,)).without("k3v9")
        >>> SharedKeys((made,)).merged(gone)
        SharedKeys(keys=(), removed=('k3v9',))
    """

    keys: tuple[ApiKey, ...] = ()
    removed: tuple[str, ...] = ()

    def merged(self, other: SharedKeys) -> SharedKeys:
        """Return what both know together."""
        removed = {*self.removed, *other.removed}
        keys: dict[str, ApiKey] = {}
        for key in sorted((*self.keys, *other.keys), key=msgspec.json.encode):
            if key.id not in removed:
                keys.setdefault(key.id, key)
        return SharedKeys(tuple(keys[each] for each in sorted(keys)), tuple(sorted(removed)))

    def with_keys(self, keys: Iterable[ApiKey]) -> SharedKeys:
        """Return this with keys more; those that were removed stay removed.

        Raises:
            ConfigError: there is another key under such an id.
        """
        keys = tuple(keys)
        known = {key.id: key for key in self.keys}
        for key in keys:
            if known.get(key.id, key) != key:
                raise ConfigError(
                    f"there is another API key {key.id!r} already; make one with: synchromesh "
                    "gateway key add"
                )
        return self.merged(SharedKeys(keys))

    def without(self, key_id: str) -> SharedKeys:
        """Return this without a key, for good."""
        return self.merged(SharedKeys((), (key_id,)))

    def by_id(self) -> dict[str, ApiKey]:
        """Return those that are good."""
        return {key.id: key for key in self.keys}


def read_shared(data: bytes, where: str) -> SharedKeys:
    """Return what is written in a document.

    Raises:
        ConfigError: it is none, or a key in it is wrong.
    """
    try:
        found = msgspec.json.decode(data, type=SharedKeys)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the API keys in {where} cannot be read: {error}") from error
    parse_keys(msgspec.json.encode(KeysFile(found.keys)), where)
    return found
