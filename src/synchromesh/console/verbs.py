"""What a person does from a page: each verb becomes one request to the control API."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from synchromesh.console.parts import service_of
from synchromesh.errors import BadRequest, UnknownOperation

Form = Mapping[str, str]
_BROKEN: dict[str, dict[str, object]] = {
    "fails": {"errors": "100%"},
    "is late by 300 ms": {"latency": "300ms"},
    "does not answer": {"stall": True},
}


@dataclass(frozen=True, slots=True)
class VerbRequest:
    """What the control API is asked for, and the page that is shown after it."""

    path: str
    body: Mapping[str, object]
    back: str


def request_of(name: str, form: Form, *, who: str) -> VerbRequest:
    """Return what a verb asks for, by whom and why.

    Raises:
        UnknownOperation: there is no such verb.
        BadRequest: a field is left out or wrong, or nobody says why.
    """
    made = _VERBS.get(name)
    if made is None:
        raise UnknownOperation(f"there is no verb {name[:80]!r}; there are {', '.join(_VERBS)}")
    why = form.get("why", "").strip()
    if not why:
        raise BadRequest(f"{name} records why; say it in the field of the form")
    wanted = made(name, form)
    by = "asked_by" if name == "restart" else "who"
    return VerbRequest(wanted.path, {**wanted.body, by: who, "why": why}, wanted.back)


def _saga(name: str, form: Form) -> VerbRequest:
    service, saga_id = _field(form, "service"), _field(form, "id")
    body: dict[str, object] = {"service": service, "id": saga_id}
    if form.get("not_done"):
        body["not_done"] = True
    return VerbRequest(f"/actions/{name}", body, f"/sagas/{quote(f'{service}:{saga_id}', safe='')}")


def _message(name: str, form: Form) -> VerbRequest:
    body = {"service": _field(form, "service"), "number": _number(form, "number")}
    return VerbRequest(f"/actions/{name}", body, "/messages")


def _projection(name: str, form: Form) -> VerbRequest:
    service = _field(form, "service")
    body = {"service": service, "name": _field(form, "name")}
    return VerbRequest(f"/actions/{name}", body, f"/services/{quote(service, safe='')}")


def _skip(name: str, form: Form) -> VerbRequest:
    wanted = _projection(name, form)
    position, generation = (_number(form, key) for key in ("position", "generation"))
    more = {"position": position, "generation": generation}
    return VerbRequest(wanted.path, {**wanted.body, **more}, wanted.back)


def _rebuild(name: str, form: Form) -> VerbRequest:
    wanted = _projection(name, form)
    more = {"retry_skipped": bool(form.get("retry_skipped"))}
    return VerbRequest(wanted.path, {**wanted.body, **more}, wanted.back)


def _restart(_: str, form: Form) -> VerbRequest:
    name = _field(form, "name")
    back = f"/services/{quote(service_of(name), safe='')}"
    return VerbRequest(f"/services/{quote(name, safe='')}/restart", {}, back)


def _break(_: str, form: Form) -> VerbRequest:
    how = _BROKEN.get(_field(form, "how"))
    if how is None:
        raise BadRequest(f"choose one of: {', '.join(_BROKEN)}")
    body = {"target": _field(form, "target"), "for": form.get("for", ""), **how}
    return VerbRequest("/faults", body, "/lab")


def _heal(_: str, form: Form) -> VerbRequest:
    return VerbRequest("/faults/heal", {"target": _field(form, "target")}, "/lab")


def _number(form: Form, name: str) -> int:
    text = _field(form, name)
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise BadRequest(f"{text[:40]!r} is no {name}")
    return int(text)


def _field(form: Form, name: str) -> str:
    value = form.get(name, "")
    if not value:
        raise BadRequest(f"the form has no {name!r}; open its page again")
    return value


_VERBS: dict[str, Callable[[str, Form], VerbRequest]] = {
    "saga.retry": _saga,
    "saga.skip": _saga,
    "saga.undo": _saga,
    "saga.cancel": _saga,
    "messages.replay": _message,
    "messages.drop": _message,
    "projection.retry": _projection,
    "projection.skip": _skip,
    "projection.rebuild": _rebuild,
    "restart": _restart,
    "break": _break,
    "heal": _heal,
}
