"""How long an answer may be kept, by whom, and how a client learns that it has it already.

A pure machine. Source: RFC 9110, sections 8.8.3, 12.5.5 and 13.1.2; RFC 9111, sections 3 and 5.2.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Final

from synchromesh.codec import digest
from synchromesh.durations import duration
from synchromesh.errors import ConfigError
from synchromesh.gateway.principal import Auth, DescribedAuth, FieldAuth
from synchromesh.gateway.shapes import is_a

ETAG: Final = "etag"
CACHE_CONTROL: Final = "cache-control"
IF_NONE_MATCH: Final = "if-none-match"
MAX_AGE_S: Final = 365 * 86_400.0

# Of an authenticator that does not say which fields it reads.
_ANY_CREDENTIAL: Final = ("authorization", "cookie")


@dataclass(frozen=True, slots=True)
class Cache:
    """Says how long the answers of a query may be kept, and for whom.

    Equal requests that come at once ask the service once, whatever is kept.

    Attributes:
        max_age: how long an answer is kept, here and by clients, at least 1 s; None keeps none:
            clients ask each time, and learn by its `ETag` that they have it already.
        shared: whether an answer is the same for all who may ask. Principals share one here, and on
            a public route caches of others may keep it. Else each principal has its own.

    Example:
        >>> Cache("30s", shared=True)
        Cache(max_age='30s', shared=True)
    """

    max_age: str | None = None
    _: KW_ONLY
    shared: bool = False


@dataclass(frozen=True, slots=True)
class CompiledCache:
    """A `Cache` as the engine runs it.

    Attributes:
        max_age_s: how long an answer is kept; 0 for none.
        is_shared: whether all principals have one answer.
        control: what answers say of it, as `Cache-Control`.
        vary: the fields by which answers differ, where they do.
    """

    max_age_s: int
    is_shared: bool
    control: str
    vary: str

    @property
    def is_kept_by_others(self) -> bool:
        """True where caches between here and the clients may keep it for all of them."""
        return self.control.startswith("public")

    def whose(self, principal: Hashable) -> Hashable:
        """Return for whom an answer is kept; the same for all principals where they share it."""
        return None if self.is_shared else principal

    def fields(self, etag: str, age_s: float | None) -> list[tuple[str, str]]:
        """Return what an answer says; `age_s` is that of one that was kept."""
        said = [(ETAG, etag), (CACHE_CONTROL, self.control)]
        if age_s is not None:
            said.append(("age", str(int(age_s))))
        if self.vary:
            said.append(("vary", self.vary))
        return said


def read_cache(
    cache: Cache | None, auth: Sequence[Auth], note: Callable[[str], None], *, is_public: bool
) -> CompiledCache | None:
    """Return a `Cache` as the engine runs it, None for none, and note what is wrong with it."""
    if cache is None:
        return None
    if not is_a(cache, Cache):
        note(f'its cache is a {type(cache).__name__}; write one such as Cache("30s")')
        return None
    if not is_a(cache.shared, bool):
        note(f"its cache is shared={cache.shared!r}; write True or False")
    max_age_s = 0.0
    if cache.max_age is not None:
        try:
            max_age_s = duration(cache.max_age, "max_age")
        except ConfigError as error:
            note(f"its cache: {error.message}")
            return None
        if not 1.0 <= max_age_s <= MAX_AGE_S:
            note(
                f"its cache has a max_age of {cache.max_age}; write 1s to 365d, or none at all "
                "to keep nothing"
            )
            return None
    # Whether caches of others may answer without asking here who wants it.
    whose = "public" if is_public and cache.shared else "private"
    keeps = f"max-age={int(max_age_s)}" if max_age_s else "no-cache"
    vary = () if is_public else credential_fields(auth)
    return CompiledCache(int(max_age_s), cache.shared, f"{whose}, {keeps}", ", ".join(vary))


def credential_fields(auth: Iterable[Auth]) -> tuple[str, ...]:
    """Return the fields of a request that tell who asks: by them private answers differ.

    Example:
        >>> from synchromesh.gateway import ApiKeys
        >>> credential_fields([ApiKeys()])
        ('authorization', 'x-api-key')
    """
    found: set[str] = set()
    for each in auth:
        if isinstance(each, FieldAuth):
            found |= each.fields()
            continue
        if not isinstance(each, DescribedAuth):
            found.update(_ANY_CREDENTIAL)
            continue
        for scheme in each.security_schemes().values():
            kind, where = scheme.get("type"), scheme.get("in")
            if kind == "apiKey" and where == "header":
                found.add(str(scheme.get("name", "")).lower())
            elif kind == "apiKey" and where == "cookie":
                found.add("cookie")
            elif kind != "mutualTLS":
                found.add("authorization")
    return tuple(sorted(found))


def etag_of(body: bytes) -> str:
    """Return the strong entity tag of an answer.

    Example:
        >>> etag_of(b"{}")
        '"2afb9b83f9314e5d029766197f539792"'
    """
    return f'"{digest(body)}"'


def has_it(conditions: Iterable[str], etag: str) -> bool:
    """Tell whether a client has an answer already, by the values of its `If-None-Match`.

    Example:
        >>> has_it(['"a", W/"b"'], '"b"'), has_it(["*"], '"b"'), has_it([], '"b"')
        (True, True, False)
    """
    known = {each.strip(" \t").removeprefix("W/") for each in ",".join(conditions).split(",")}
    return etag in known or "*" in known
