"""Puts the ways to tell who asks to work."""

from __future__ import annotations

from collections.abc import Sequence

from synchromesh.errors import ConfigError
from synchromesh.gateway.check import refusal_of
from synchromesh.gateway.names import opened
from synchromesh.gateway.principal import Auth, Authenticator, Folders
from synchromesh.runtime import Runtime


async def all_opened(
    auths: Sequence[Auth], folders: Folders, runtime: Runtime, mistakes: Sequence[str] = ()
) -> list[Authenticator]:
    """Return what each of them is at work; close them.

    Args:
        mistakes: what is wrong with their gateway already.

    Raises:
        ConfigError: what one needs is missing or wrong; the message names all mistakes.
    """
    mistakes = list(mistakes)
    found: list[Authenticator] = []
    for auth in auths:
        try:
            found.append(opened(auth, auths, folders, runtime))
        except ConfigError as error:
            mistakes.append(error.message)
    if mistakes:
        for authenticator in found:
            await authenticator.close()
        raise refusal_of(mistakes)
    return found
