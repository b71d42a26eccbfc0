"""Entries of a registry that many hosts share: how one is written, and whose it is.

An entry is the last message of its subject, and its revision is the number of that message: the
server gives it, so that all see the same order, and of two registrations the later one wins. Who
changes an entry names the revision that it has seen; the server refuses it where there is another.
A pure machine.
"""

from __future__ import annotations

import re
from enum import Enum
from urllib.parse import unquote

import msgspec

from synchromesh.codec import decode
from synchromesh.discovery.endpoint import Endpoint
from synchromesh.errors import BadRequest, ConfigError

_UNSAFE = re.compile(r"[^A-Za-z0-9_/-]")


class InstanceEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is written of an instance.

    Attributes:
        endpoint: where it is.
        holder: the process that keeps it alive.
        incarnation: its number; 0 in the message that grants it, whose own number it is.
        is_draining: whether it is to get no more calls.
        is_suspect: whether it is listed only where no other is.
    """

    endpoint: Endpoint
    holder: str
    incarnation: int = 0
    is_draining: bool = False
    is_suspect: bool = False


class Kept(msgspec.Struct, frozen=True):
    """An entry as it stands in the registry, at its revision."""

    entry: InstanceEntry
    revision: int


class Standing(Enum):
    """Whether who holds an entry still does, by what is found in its place."""

    OURS = "ours"
    LOST = "lost"
    REPLACED = "replaced"


def standing(mine: InstanceEntry, found: Kept | None) -> Standing:
    """Return what an entry that was found says to whoever was refused a change of it.

    It is ours where only its state is another, as after a change whose answer was lost, or one that
    a supervisor has made. Where nothing is found the lease has run out. One of the same holder
    under another number is a registration of ours whose answer was lost: no reason to stop.

    Example:
        >>> mine = InstanceEntry(Endpoint("a", "billing", "http://h:1"), "p1", incarnation=4)
        >>> other = InstanceEntry(mine.endpoint, "p2", incarnation=9)
        >>> standing(mine, Kept(mine, 5)), standing(mine, None), standing(mine, Kept(other, 9))
        (<Standing.OURS: 'ours'>, <Standing.LOST: 'lost'>, <Standing.REPLACED: 'replaced'>)
    """
    if found is None:
        return Standing.LOST
    if found.entry.holder != mine.holder:
        return Standing.REPLACED
    return Standing.OURS if found.entry.incarnation == mine.incarnation else Standing.LOST


def token_of(name: str) -> str:
    """Return a name as one token of a subject, and of a key that other clients of KV read.

    Example:
        >>> token_of("billing#1"), name_of("billing=231")
        ('billing=231', 'billing#1')
    """
    return _UNSAFE.sub(lambda found: "".join(f"={each:02X}" for each in found[0].encode()), name)


def name_of(token: str) -> str:
    """Return the name that a token was made of."""
    return unquote(token.replace("=", "%"))


def read(data: bytes, revision: int) -> Kept | None:
    """Return the entry of a message, given its revision; None where it has ended.

    Raises:
        BadRequest: it is no entry.
    """
    if not data:
        return None
    try:
        entry = decode(data, InstanceEntry)
    except ConfigError as error:
        raise BadRequest(error.message) from error
    if not entry.incarnation:
        entry = msgspec.structs.replace(entry, incarnation=revision)
    return Kept(entry, revision)


def place_of(endpoint: Endpoint) -> str:
    """Return the last two tokens of the subject of an instance's entry.

    Example:
        >>> place_of(Endpoint("billing#1", "billing", "http://127.0.0.1:8001"))
        'billing.billing=231'
    """
    return f"{token_of(endpoint.service)}.{token_of(endpoint.instance)}"
