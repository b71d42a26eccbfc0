"""Compiles what describes a gateway: its OpenAPI document and its reference page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from synchromesh.errors import ConfigError, SynchromeshError
from synchromesh.gateway.compiled import CompiledRoute
from synchromesh.gateway.openapi import openapi, written
from synchromesh.gateway.pages import ServedPage
from synchromesh.gateway.reference import POLICY, reference_page
from synchromesh.gateway.router import Template
from synchromesh.gateway.routes import Gateway, OpenApi
from synchromesh.gateway.shapes import is_a

DEADLINE_S = 5.0

_JSON = (("content-type", "application/json"),)
_HTML = (
    ("content-type", "text/html; charset=utf-8"),
    ("content-security-policy", POLICY),
    ("referrer-policy", "no-referrer"),
)


def read_described(
    gateway: Gateway, entries: Sequence[CompiledRoute], mistakes: list[str], *, has_auth: bool
) -> list[CompiledRoute]:
    """Compile what describes a gateway, and collect its mistakes.

    Args:
        entries: the routes; the document is made only where nothing is wrong with them.
        has_auth: whether anybody can be known.
    """
    about = gateway.openapi
    if not is_a(about, OpenApi):
        mistakes.append(f"openapi is a {type(about).__name__}; write OpenApi(title=...)")
        return []
    assert about is not None
    wrong = list(_mistakes(about, has_auth=has_auth))
    templates: list[Template] = []
    for name, path in (("path", about.path), ("reference", about.reference)):
        if not path:
            continue
        try:
            template = Template.of(f"GET {path}")
            if template.places:
                wrong.append(f"openapi: its {name} {path[:40]!r} has a place; write a plain path")
            else:
                templates.append(template)
        except ConfigError:
            wrong.append(
                f"openapi: its {name} {str(path)[:40]!r} is no path; write one such as "
                '"/openapi.json", or "" to serve none'
            )
    mistakes += wrong
    if mistakes:
        # It is all the same what would be served: nothing is.
        return [_entry(template, about, ServedPage(b"", (), False)) for template in templates]
    try:
        document = openapi(gateway, entries)
        data, page = written(document), reference_page(document)
    except (SynchromeshError, TypeError, ValueError) as error:
        mistakes.append(f"openapi: a type of the routes cannot be described: {error}")
        return []
    served = {about.path: ServedPage(data, _JSON, about.public)}
    served[about.reference] = ServedPage(page, _HTML, about.public)
    return [_entry(template, about, served[template.path]) for template in templates]


def _mistakes(about: OpenApi, *, has_auth: bool) -> Iterator[str]:
    for name in ("title", "version"):
        if not is_a(getattr(about, name), str) or not getattr(about, name):
            yield f"openapi: its {name} is empty, or no text; write one"
    if not is_a(about.public, bool):
        yield f"openapi: its public is {str(about.public)[:40]!r}; write True or False"
    if not is_a(about.description, str):
        yield "openapi: its description is no text; write one"
    if (about.path or about.reference) and not about.public and not has_auth:
        yield (
            "openapi: it needs a principal, and the gateway has no auth to know one by; add one, "
            "such as auth=[ApiKeys()], or say public=True"
        )


def _entry(template: Template, about: OpenApi, page: ServedPage) -> CompiledRoute:
    return CompiledRoute(
        template=template,
        scopes=frozenset(),
        is_public=about.public,
        deadline_s=DEADLINE_S,
        page=page,
    )
