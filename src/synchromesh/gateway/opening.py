"""Puts the ways to tell who asks to work."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from synchromesh.errors import ConfigError
from synchromesh.gateway.arguments import sound
from synchromesh.gateway.checking import refusal_of
from synchromesh.gateway.jwt import TokenVerifier
from synchromesh.gateway.names import opened
from synchromesh.gateway.principal import Auth, Authenticator, Folders
from synchromesh.gateway.routes import Gateway
from synchromesh.runtime import Runtime


async def all_opened(
    gateway: Gateway, folders: Folders, runtime: Runtime, mistakes: Sequence[str] = ()
) -> list[Authenticator]:
    """Return what each of a gateway's ways to tell who asks is at work; close them.

    Args:
        mistakes: what is wrong with the gateway already.

    Raises:
        ConfigError: what one needs is missing or wrong; the message names all mistakes.
    """
    reopened = await reopen(sound(gateway)[0].auth, (), folders, runtime, mistakes)
    return reopened.authenticators


@dataclass(frozen=True, slots=True)
class Reopened:
    """What of a gateway tells who asks.

    Attributes:
        authenticators: in the order of its definition.
        made: those of them that were opened for it, and not kept; close them where it is not used.
    """

    authenticators: list[Authenticator]
    made: list[Authenticator]


async def reopen(
    auths: Sequence[Auth],
    before: Sequence[tuple[Auth, Authenticator]],
    folders: Folders,
    runtime: Runtime,
    mistakes: Sequence[str] = (),
) -> Reopened:
    """Return what each of them is at work; those that verify tokens by the same rules are kept.

    They have the keys of their issuer, which may be away just now.

    Args:
        before: those that were at work, each with what it was made from.

    Raises:
        ConfigError: what one needs is missing or wrong; the message names all mistakes.
    """
    mistakes = list(mistakes)
    found: list[Authenticator] = []
    made: list[Authenticator] = []
    try:
        for auth in auths:
            kept = [own for own_auth, own in before if own_auth == auth]
            if kept and isinstance(kept[0], TokenVerifier):
                found.append(kept[0])
                continue
            try:
                found.append(opened(auth, auths, folders, runtime))
            except ConfigError as error:
                mistakes.append(error.message)
            else:
                made.append(found[-1])
        if mistakes:
            raise refusal_of(mistakes)
    except BaseException:
        await close_all(made)
        raise
    return Reopened(found, made)


async def close_all(authenticators: Sequence[Authenticator]) -> None:
    """End each of them, also where one fails, or whoever waits for it goes away."""
    async with AsyncExitStack() as stack:
        for authenticator in authenticators:
            stack.push_async_callback(authenticator.close)
