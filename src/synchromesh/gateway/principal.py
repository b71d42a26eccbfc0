"""Who asks, and the Protocols that every kind of credential implements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

from synchromesh.errors import Unauthenticated
from synchromesh.http import Headers, HttpExchange, HttpRequest
from synchromesh.identity import Principal
from synchromesh.runtime import Runtime

AUTHORIZATION = "authorization"
API_KEY = "x-api-key"
NAME_MAX = 128


class Authenticator(Protocol):
    """Tells who asks, at work."""

    async def authenticate(self, request: HttpRequest) -> Principal | None:
        """Return who asks, or None where the request carries no credential of this kind.

        Its body may still be to come, and is none of its business.

        Raises:
            Unauthenticated: there is one, and it is not valid.
            Shed: it cannot be verified now.
        """
        ...

    def refresh(self) -> None:
        """Look whether what it verifies by has changed; called once a second."""
        ...

    async def close(self) -> None:
        """End what it runs. May be repeated."""
        ...


# Says who asks by a request as it came, at once; None has `authenticate` asked.
Known: TypeAlias = Callable[[HttpExchange], Principal | None]


@runtime_checkable
class QuickAuthenticator(Protocol):
    """Is an `Authenticator` that knows some principals without waiting."""

    def known(self, exchange: HttpExchange) -> Principal | None:
        """Return who asks where that is sure at once; None has `authenticate` asked."""
        ...


class KeptVerdict(NamedTuple):
    """Who asks by the fields of a request, and what that rests on.

    It is kept with the fields (`KeptFields.verdict`), so that the same fields need not be verified
    again while it holds; whether it does is looked at each time, by the one who has given it.

    Attributes:
        by: who has given it.
        basis: what it was verified by; a verdict on anything else than what counts now is void.
        until_us: when it ends, by the wall clock; None for never.
    """

    principal: Principal
    by: Keeping
    basis: object
    until_us: float | None


class Keeping(Protocol):
    """Gives verdicts that may be kept, for what fields say and nothing else."""

    def holds(self, verdict: KeptVerdict) -> bool:
        """Tell whether a verdict of its own still counts."""
        ...


@dataclass(frozen=True, slots=True)
class Folders:
    """Where files with relative paths are.

    Attributes:
        system: the folder of `synchromesh.toml`, for files that people write.
        run: the run directory, for files that commands write.

    Example:
        >>> Folders(system=Path("shop"), run=Path("shop/.synchromesh")).system / "keys.json"
        PosixPath('shop/keys.json')
    """

    system: Path
    run: Path


class Auth(Protocol):
    """Describes a way to tell who asks; a value in a gateway's definition."""

    def open(self, folders: Folders, runtime: Runtime) -> Authenticator:
        """Read what it needs and go to work.

        Raises:
            ConfigError: what it needs is missing or wrong; the message names every mistake.
        """
        ...


@runtime_checkable
class DescribedAuth(Protocol):
    """Is an `Auth` that says to clients how a request is authenticated."""

    def security_schemes(self) -> Mapping[str, Mapping[str, object]]:
        """Return the Security Scheme Objects of OpenAPI, by name; any one of them will do."""
        ...


@runtime_checkable
class FieldAuth(Protocol):
    """Is an `Auth` that says itself which fields of a request it looks at."""

    def fields(self) -> AbstractSet[str]:
        """Return their names, in lower case."""
        ...


def credential_of(headers: Headers) -> tuple[str, str] | None:
    """Return the field of a request that carries its credential, if any: its name and value.

    Raises:
        Unauthenticated: the request carries several: which one counts is unclear.
    """
    credentials = [pair for pair in headers if pair[0] in (AUTHORIZATION, API_KEY)]
    if len(credentials) > 1:
        raise Unauthenticated("the request carries several credentials; send one")
    return credentials[0] if credentials else None


def bearer_of(value: str) -> str | None:
    """Return the token in an Authorization field (RFC 6750); None for another scheme.

    Example:
        >>> bearer_of("Bearer abc"), bearer_of("Basic abc")
        ('abc', None)
    """
    scheme, _, token = value.partition(" ")
    return token.strip(" ") if scheme.lower() == "bearer" else None


def is_name(text: object) -> bool:
    """Return whether a text can be the name of a principal: 1 to 128 printable characters."""
    return isinstance(text, str) and 0 < len(text) <= NAME_MAX and text.isprintable()


def taken_name(name: str, reserved: Mapping[str, str]) -> str:
    """Return why a principal must not have a name; "" where it may.

    Example:
        >>> reserved = {"jwt:": "tokens of https://id"}
        >>> taken_name("jwt:ada", reserved)[:44], taken_name("ada", reserved)
        ("the principal 'jwt:ada' has a name as tokens", '')
    """
    for prefix, who in reserved.items():
        if name.startswith(prefix):
            return (
                f"the principal {name[:80]!r} has a name as {who} give it: give it another, which "
                f"does not begin with {prefix!r}"
            )
    return ""
