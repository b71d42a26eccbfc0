"""What an operator does with personal data: look up whose there is, and erase them.

What is shown of a subject is never the data, but since when a service has a key for it.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import asdict

from synchromesh.codec import to_datetime
from synchromesh.errors import BadRequest
from synchromesh.sealing import SubjectRecord
from synchromesh.service import ServiceInstance
from synchromesh.service.erasure import Erasure, erase, give_up_keys, keys_in_use
from synchromesh.service.holdings import holdings_of
from synchromesh.store import StoreReader
from synchromesh.system.control.actions import (
    Action,
    ReadAction,
    ReadRequest,
    RepairAction,
    RepairRequest,
)
from synchromesh.system.control.beside import ask_beside

SUBJECT_MAX = 200
LISTED_MAX = 10_000
# It goes through whole tables.
EXPORT_WITHIN_S = 600.0


class ListSubjects(ReadRequest, frozen=True):
    """Which subjects: those that have keys, or those that were erased; the last come first."""

    is_erased: bool = False
    limit: int = 50


class ShowSubject(ReadRequest, frozen=True, kw_only=True):
    """Which subject."""

    subject: str


class EraseSubject(RepairRequest, frozen=True, kw_only=True):
    """Which subject; in every service, also in those that know nothing of it."""

    subject: str


class ExportSubject(RepairRequest, frozen=True, kw_only=True):
    """Which subject: what is held of it is opened, and that it was is recorded."""

    subject: str


class GiveUpKeys(RepairRequest, frozen=True, kw_only=True):
    """Whose lost keys."""


async def _list(reader: StoreReader, wanted: ListSubjects) -> list[dict[str, Any]]:
    if not 1 <= wanted.limit <= LISTED_MAX:
        raise BadRequest(f"limit is {wanted.limit}; use 1 to {LISTED_MAX}")
    found = reader.beside.keys().subjects(is_erased=wanted.is_erased, limit=wanted.limit)
    return [_told(each) for each in found]


async def _show(reader: StoreReader, wanted: ShowSubject) -> dict[str, Any] | None:
    keys = reader.beside.keys()
    found = keys.find(_checked(wanted.subject))
    if found is None:
        return None
    accesses = [
        {"at": to_datetime(at_us).isoformat(), "who": who, "why": why}
        for at_us, who, why in keys.accesses(wanted.subject)
    ]
    return {**_told(found), "shown": accesses}


async def _erase(instance: ServiceInstance, wanted: EraseSubject) -> Erasure:
    now_us = instance.store.beside.now_us()
    subject = _checked(wanted.subject)
    return erase(instance.store, subject, now_us=now_us, who=wanted.who, why=wanted.why)


async def _export(instance: ServiceInstance, wanted: ExportSubject) -> dict[str, Any] | None:
    subject, store = _checked(wanted.subject), instance.store
    known = store.vault.find(subject)
    if known is None:
        return None
    # Before anything is opened.
    now_us = store.beside.now_us()
    store.vault.note_access(subject, now_us=now_us, who=wanted.who, why=wanted.why)
    held = await ask_beside(store, lambda own: holdings_of(own, subject, store.vault))
    return {"found": [asdict(each) for each in held.found], "is_all": held.is_all}


async def _give_up(instance: ServiceInstance, wanted: GiveUpKeys) -> dict[str, str] | None:
    if wanted.service != instance.service.name:
        return None
    now_us = instance.store.beside.now_us()
    lost = await give_up_keys(instance.store, now_us=now_us, who=wanted.who, why=wanted.why)
    await instance.engine.try_again()
    return {"service": wanted.service, "lost": lost}


async def keys_faults(reader: StoreReader) -> list[str]:
    """Return what is wrong with the keys of a service's personal data."""
    return reader.beside.keys().faults(await keys_in_use(reader))


def _checked(subject: str) -> str:
    if not 1 <= len(subject) <= SUBJECT_MAX:
        raise BadRequest(
            f"the subject has {len(subject)} characters; expected 1 to {SUBJECT_MAX}, as the "
            "field of type Subject has them"
        )
    return subject


def _told(record: SubjectRecord) -> dict[str, Any]:
    erased_us = record.erased_us
    return {
        "subject": record.name,
        "since": to_datetime(record.made_us).isoformat(),
        "erased_at": None if erased_us is None else to_datetime(erased_us).isoformat(),
        "who": record.who,
        "why": record.why,
    }


def _unknown(wanted: ShowSubject | EraseSubject | ExportSubject) -> BadRequest:
    return BadRequest(
        f"no service has personal data of a subject {wanted.subject[:SUBJECT_MAX]!r}; synchromesh "
        "personal list shows whose there is"
    )


def _has_none(wanted: GiveUpKeys) -> BadRequest:
    return BadRequest(f"{wanted.service or 'no service'} does not run here, or has no database")


ACTIONS: tuple[Action, ...] = (
    ReadAction("personal.list", ListSubjects, _list),
    ReadAction("personal.show", ShowSubject, _show, _unknown),
    RepairAction("personal.erase", EraseSubject, _erase, _unknown),
    RepairAction("personal.export", ExportSubject, _export, _unknown, within_s=EXPORT_WITHIN_S),
    RepairAction("personal.give-up", GiveUpKeys, _give_up, _has_none),
)
