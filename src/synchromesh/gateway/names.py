"""Keeps the names of principals apart: nobody may come by a credential as somebody else.

Names of API keys, and those that `Certificates` has principals for, are given by an operator.
Subjects of tokens and names in certificates are given by whoever runs the issuer or the authority,
often by users themselves; they have a prefix, and with that a space of names of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from synchromesh.errors import ConfigError, SynchromeshError
from synchromesh.gateway.api_keys import ApiKeys, KeyRing
from synchromesh.gateway.certificates import Certificates
from synchromesh.gateway.jwt import JWT
from synchromesh.gateway.principal import Auth, Authenticator, Folders, taken_name
from synchromesh.runtime import Runtime


def reserved_prefixes(auth: Sequence[Auth]) -> Mapping[str, str]:
    """Return what the names of principals begin with that come from outside, and from whom.

    Example:
        >>> reserved_prefixes([JWT(issuer="https://id.servo.works", audience="api")])
        {'jwt:': 'tokens of https://id.servo.works'}
    """
    found: dict[str, str] = {}
    for each in auth:
        if isinstance(each, JWT) and each.prefix:
            found[each.prefix] = f"tokens of {each.issuer}"
        elif isinstance(each, Certificates) and each.principals is None and each.prefix:
            found[each.prefix] = "certificates"
    return found


def shared_names(auth: Sequence[Auth]) -> Iterator[str]:
    """Find who could give principals each other's names, or those of keys; a sentence each."""
    has_keys = any(isinstance(each, ApiKeys) for each in auth)
    others: list[tuple[str, str, str]] = []
    for each in auth:
        if isinstance(each, JWT):
            who, source, prefix = f"JWT of {each.issuer}", each.issuer, each.prefix
        elif isinstance(each, Certificates) and each.principals is None:
            who, source, prefix = "Certificates", "", each.prefix
        else:
            continue
        # A subject may begin with whatever follows the shorter prefix.
        clashing = [
            other
            for other, other_source, other_prefix in others
            if other_source != source
            and (other_prefix.startswith(prefix) or prefix.startswith(other_prefix))
        ]
        if has_keys and not prefix:
            clashing.append("API keys")
        for other in clashing:
            yield (
                f"{who} and {other.removeprefix('JWT of ')} can give principals the same names; "
                "give each its own prefix, of which none begins with another"
            )
        others.append((who, source, prefix))
    reserved = reserved_prefixes(auth)
    for each in auth:
        if isinstance(each, Certificates):
            for principal in (each.principals or {}).values():
                taken = taken_name(str(getattr(principal, "name", "")), reserved)
                if taken:
                    yield f"Certificates: {taken}"


def opened(each: Auth, auth: Sequence[Auth], folders: Folders, runtime: Runtime) -> Authenticator:
    """Return one of a gateway's ways to tell who asks at work, its names apart from the others'.

    Raises:
        ConfigError: what it needs is missing or wrong; the message names every mistake.
    """
    try:
        authenticator = each.open(folders, runtime)
    except (SynchromeshError, KeyboardInterrupt):
        raise
    except BaseException as error:
        # Of an application's own; not even what a script ends by ends what serves already.
        why = f"{type(error).__name__}: {error}"
        raise ConfigError(f"auth: {type(each).__name__} could not be opened: {why}") from error
    if isinstance(authenticator, KeyRing):
        authenticator.reserve(reserved_prefixes(auth))
    return authenticator
