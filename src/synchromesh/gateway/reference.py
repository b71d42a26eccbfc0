"""The reference page of a gateway's API: plain HTML, made of its OpenAPI document on the server.

There is no script in it and nothing is fetched: its one style sheet is named by its hash in the
page's policy, so that whatever somebody wrote into a docstring stays a text.

Source: Content Security Policy Level 3.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from hashlib import sha256
from html import escape
from typing import Any, Final, TypeAlias
from urllib.parse import quote

from synchromesh.codec import encode
from synchromesh.gateway.schemas import PLACE

Json: TypeAlias = Mapping[str, Any]

_STYLE: Final = """
:root{color-scheme:light dark;--ink:#1d2430;--faint:#566070;--paper:#fff;--line:#d5dae2;
--soft:#f3f5f8;--link:#0b57a4;--read:#0b6b3a;--write:#8a4500}
@media (prefers-color-scheme:dark){:root{--ink:#e4e8ef;--faint:#a3adbd;--paper:#14181f;
--line:#363e4b;--soft:#1d232d;--link:#8cc0ff;--read:#7fdca8;--write:#ffbf80}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem;max-width:64rem;background:var(--paper);color:var(--ink);
font:1rem/1.5 system-ui,sans-serif;overflow-wrap:break-word}
a{color:var(--link)}a:focus-visible{outline:2px solid}
code{font-family:ui-monospace,monospace;font-size:.9em}
h1 small{color:var(--faint);font-weight:400}
h2{margin-top:2.5rem;border-bottom:1px solid var(--line)}
article{margin:1.5rem 0;padding:.25rem 1rem 1rem;border:1px solid var(--line);border-radius:.5rem}
.get{color:var(--read)}.put,.post,.patch,.delete{color:var(--write)}
.text{white-space:pre-line}.faint{color:var(--faint)}
table{width:100%;border-collapse:collapse}
th,td{padding:.3rem .5rem;border-top:1px solid var(--line);text-align:left;vertical-align:top}
th{color:var(--faint);font-weight:400}td:first-child{width:25%}td p{margin:0}
"""
STYLE_HASH: Final = b64encode(sha256(_STYLE.encode()).digest()).decode()
POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{STYLE_HASH}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)

# What is left out where a type is named in passing: its modules, and what tells twins apart.
_MODULES: Final = re.compile(r"[A-Za-z0-9_]+\.")
_DIGEST: Final = re.compile(r"\.[0-9a-f]{8}(?=-|$)")
_METHODS: Final = ("get", "put", "post", "patch", "delete")
# What is said of a value beside its type.
_LIMITS: Final = (
    "format", "minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "multipleOf",
    "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "pattern",
    "contentEncoding",
)  # fmt: skip


def reference_page(document: Json) -> bytes:
    """Return the page of an OpenAPI document, to be served under `POLICY`.

    Example:
        >>> page = reference_page({"info": {"title": "<b>", "version": "1"}, "paths": {}})
        >>> b"<h1>&lt;b&gt; <small>1</small></h1>" in page
        True
    """
    info, components = document["info"], document.get("components", {})
    by_tag: dict[str, list[tuple[str, str, Json]]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method in _METHODS:
                by_tag.setdefault(operation["tags"][0], []).append((method, path, operation))
    title = escape(info["title"])
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{title}</title><style>{_STYLE}</style></head><body>",
        f"<header><h1>{title} <small>{escape(info['version'])}</small></h1>",
        _text(info.get("description", "")),
        "</header><nav aria-label='Operations'>",
        *(_contents(tag, found) for tag, found in sorted(by_tag.items())),
        "</nav><main>",
        *(_section(tag, found) for tag, found in sorted(by_tag.items())),
        _types(components.get("schemas", {})),
        _problems(components.get("responses", {})),
        _schemes(components.get("securitySchemes", {})),
        "</main></body></html>\n",
    ]
    return "".join(parts).encode()


def _contents(tag: str, found: Iterable[tuple[str, str, Json]]) -> str:
    rows = "".join(
        f'<li><a href="#{_anchor("op", each["operationId"])}">{_route(method, path)}</a> '
        f"{escape(each['summary'])}</li>"
        for method, path, each in found
    )
    return f"<h2>{escape(tag)}</h2><ul>{rows}</ul>"


def _section(tag: str, found: Iterable[tuple[str, str, Json]]) -> str:
    return f"<h2>{escape(tag)}</h2>{''.join(_operation(*each) for each in found)}"


def _operation(method: str, path: str, operation: Json) -> str:
    name = operation["operationId"]
    parts = [
        f'<article id="{_id("op", name)}"><h3>{_route(method, path)}</h3>',
        f'<p>{escape(operation["summary"])} <code class="faint">{escape(name)}</code></p>',
        _text(operation.get("description", "")),
    ]
    schemes = [each for need in operation["security"] for each in need]
    if schemes:
        links = " or ".join(_link("scheme", each, each) for each in schemes)
        parts.append(f"<p>Authenticated by {links}.</p>")
    given = [_parameter(each) for each in operation.get("parameters", ()) if "$ref" not in each]
    if given:
        parts.append(_table("Parameters", given))
    for kind, media in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(
            f"<h4>Body</h4><p><code>{escape(kind)}</code> {_kind(media.get('schema'))}</p>"
        )
        parts.append(_fields_of(media.get("schema", {})))
    parts.append(_table("Answers", [_answer(*each) for each in operation["responses"].items()]))
    return "".join(parts) + "</article>"


def _parameter(parameter: Json) -> tuple[str, str]:
    schema = parameter.get("schema")
    if schema is None:
        schema = parameter["content"]["application/json"]["schema"]
    where = f"in the {parameter['in']}"
    if "content" in parameter:
        where = f"{where}, as JSON"
    told = f"{where}{_needed(parameter['required'])}"
    return (
        f"<code>{escape(parameter['name'])}</code>",
        f"{_kind(schema)} <span class='faint'>{told}</span>{_default(schema)}",
    )


def _answer(status: str, answer: Json) -> tuple[str, str]:
    label = f"<code>{escape(status)}</code>"
    if "$ref" in answer:
        return label, _link("problem", answer["$ref"].rpartition("/")[2], "a problem")
    content = answer.get("content", {})  # a 304 has none
    kinds = " or ".join(
        f"<code>{escape(kind)}</code> {_kind(media.get('schema'))}"
        for kind, media in content.items()
    )
    fields = "".join(_fields_of(media.get("schema", {})) for media in content.values())
    return label, f"{_text(answer['description'])}{f'<p>{kinds}</p>' if kinds else ''}{fields}"


def _types(schemas: Json) -> str:
    if not schemas:
        return ""
    parts = ["<h2>Types</h2>"]
    for name, schema in schemas.items():
        shown = escape(str(schema.get("title", name)))
        parts.append(f'<article id="{_id("type", name)}"><h3>{shown}</h3>')
        parts.append(f'<p class="faint"><code>{escape(name)}</code></p>')
        parts.append(_text(str(schema.get("description", ""))))
        parts.append(_fields_of(schema) or f"<p>{_kind(schema)}</p>")
        parts.append("</article>")
    return "".join(parts)


def _problems(found: Json) -> str:
    parts = ["<h2>Problems</h2>"] if found else []
    for name, answer in found.items():
        parts.append(f'<article id="{_id("problem", name)}"><h3>{escape(name)}</h3>')
        parts.append(f"{_text(answer['description'])}</article>")
    return "".join(parts)


def _schemes(found: Json) -> str:
    parts = ["<h2>Authentication</h2>"] if found else []
    for name, scheme in found.items():
        how = scheme.get("scheme") or f"the header {scheme.get('name', '')}"
        parts.append(f'<article id="{_id("scheme", name)}"><h3>{escape(name)}</h3>')
        parts.append(f"<p><code>{escape(str(how))}</code></p>")
        parts.append(f"{_text(str(scheme.get('description', '')))}</article>")
    return "".join(parts)


# -- schemas ---------------------------------------------------------------------------------------


def _fields_of(schema: Json) -> str:
    properties = schema.get("properties")
    if not properties:
        # Of an array the fields of its elements, and of what may be null those of what it is else.
        inner = [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]
        inner = [schema["items"]] if isinstance(schema.get("items"), dict) else inner
        return _fields_of(inner[0]) if len(inner) == 1 else ""
    needed = schema.get("required", ())
    rows = []
    for name, each in properties.items():
        told = f"{_kind(each)}<span class='faint'>{_needed(name in needed)}</span>{_default(each)}"
        more = f"{_text(str(each.get('description', '')))}{_fields_of(each)}"
        rows.append((f"<code>{escape(name)}</code>", told + more))
    return _table("", rows)


def _kind(schema: Json | None) -> str:
    """Say what a schema takes."""
    if not schema:
        return "anything"
    return f"{_bare(schema)}{_limits(schema)}"


def _bare(schema: Json) -> str:
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(PLACE)
        return _link("type", name, _MODULES.sub("", _DIGEST.sub("", name)))
    if "const" in schema:
        return f"<code>{_shown(schema['const'])}</code>"
    if "enum" in schema:
        return "one of " + ", ".join(f"<code>{_shown(each)}</code>" for each in schema["enum"])
    for key, word in (("anyOf", " or "), ("oneOf", " or "), ("allOf", " and ")):
        if key in schema:
            return word.join(map(_kind, schema[key]))
    if "prefixItems" in schema:
        return f"array of {', '.join(map(_kind, schema['prefixItems']))}"
    if schema.get("type") == "array":
        return f"array of {_kind(schema.get('items'))}"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"map to {_kind(schema['additionalProperties'])}"
    kind = schema.get("type", "anything")
    return escape(kind if isinstance(kind, str) else " or ".join(kind))


def _limits(schema: Json) -> str:
    said = [f"{name} <code>{_shown(schema[name])}</code>" for name in _LIMITS if name in schema]
    return f" <span class='faint'>({', '.join(said)})</span>" if said else ""


def _default(schema: Json) -> str:
    if "default" not in schema:
        return ""
    return f" <span class='faint'>else <code>{_shown(schema['default'])}</code></span>"


# -- words and marks -------------------------------------------------------------------------------


def _route(method: str, path: str) -> str:
    return f'<code><b class="{escape(method)}">{escape(method.upper())}</b> {escape(path)}</code>'


def _text(text: str) -> str:
    return f'<p class="text">{escape(text)}</p>' if text else ""


def _needed(is_needed: bool) -> str:
    return "" if is_needed else ", optional"


def _table(heading: str, rows: Iterable[tuple[str, str]]) -> str:
    made = "".join(f"<tr><td>{name}</td><td>{told}</td></tr>" for name, told in rows)
    return f"{f'<h4>{heading}</h4>' if heading else ''}<table>{made}</table>"


def _shown(value: object) -> str:
    return escape(encode(value).decode())


def _link(kind: str, name: str, text: str) -> str:
    return f'<a href="#{_anchor(kind, name)}">{escape(text)}</a>'


def _anchor(kind: str, name: str) -> str:
    return quote(f"{kind}-{name}")


def _id(kind: str, name: str) -> str:
    return escape(f"{kind}-{name}")
