"""The OpenAPI document of a gateway: what a client may ask, and all that it may be answered.

It is a function of the gateway's definition alone, so that its bytes can be committed and compared.
Types are named by `schemas`, and operations by contract and route: no name depends on what else is
in the document.

Source: OpenAPI 3.1.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from synchromesh.calls.contract import Operation
from synchromesh.calls.routes import ANY
from synchromesh.calls.signature import BODILESS
from synchromesh.codec import digest, encode
from synchromesh.errors import Rejection
from synchromesh.gateway.compiled import CompiledRoute
from synchromesh.gateway.openapi_answers import (
    answer,
    branch_schema,
    each_of,
    mark_of,
    say_kept,
    say_rated,
    whole,
)
from synchromesh.gateway.openapi_parts import HEADERS, PARAMETERS, SCHEMAS, problem, responses
from synchromesh.gateway.principal import Auth, DescribedAuth
from synchromesh.gateway.problems import statuses
from synchromesh.gateway.router import Template
from synchromesh.gateway.routes import Aggregate, Forward, Gateway, OpenApi, Route
from synchromesh.gateway.schemas import PLACE, Schema, Schemas, doc_of, title_of, with_default
from synchromesh.gateway.shapes import is_text

Json: TypeAlias = dict[str, Any]

# What the gateway tags with its own name: pages that it puts together itself.
_OWN_TAG: Final = "gateway"
_PLACE: Final = re.compile(r"\{([a-z_][a-z0-9_]*)\}")
_ANY: Final = ("GET", "PUT", "POST", "PATCH", "DELETE")
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})
_PLAIN_SEGMENT: Final = re.compile(r"(?!by_|rest_)[A-Za-z0-9_~-]*")
# Where a path is decoded, a control character is refused; an empty place is another path.
_SEGMENT: Final = {"type": "string", "minLength": 1, "pattern": r"^[^\u0000-\u001f\u007f]+$"}
# A forward hands it on in a path, where a slash or a backslash would lead elsewhere.
_WITHIN: Final = {**_SEGMENT, "pattern": r"^[^\u0000-\u001f\u007f/\\]+$"}
_REFUSED: Final = (400, 403, 429, 500, 502, 503, 504)


def openapi(gateway: Gateway, entries: Sequence[CompiledRoute]) -> Json:
    """Return the OpenAPI 3.1 document of a gateway.

    Args:
        gateway: the definition.
        entries: what `compiled` has made of it.

    Example:
        >>> from typing import Protocol
        >>> from synchromesh.calls import Contract, query
        >>> from synchromesh.gateway.checking import compiled
        >>> class Inventory(Contract, Protocol, service="inventory", version="1.0"):
        ...     @query("GET /stock/{sku}")
        ...     async def stock(self, sku: str) -> int: ...
        >>> gateway = Gateway(routes=[Route("GET /stock/{sku}", Inventory.stock, public=True)])
        >>> document = openapi(gateway, compiled(gateway))
        >>> document["paths"]["/stock/{sku}"]["get"]["operationId"]
        'inventory.stock'
    """
    about = gateway.openapi or OpenApi()
    writer = _Writer(gateway.auth)
    paths: dict[str, Json] = {}
    every = zip(gateway.routes, entries, strict=False)
    # A path of the document is the same on every host.
    routes = sorted((each for each in every if not each[1].host), key=_closeness)
    for route, entry in routes:
        path, names = writer.path(entry.template)
        for method in _methods_of(entry.template):
            # A closer route has it already; of this one clients can see the other methods.
            if method.lower() not in paths.setdefault(path, {}):
                paths[path][method.lower()] = writer.operation(route, entry, method, names)
    tags = sorted(
        {tag for path in paths.values() for each in path.values() for tag in each["tags"]}
    )
    info: Json = {"title": about.title, "version": about.version}
    if about.description:
        info["description"] = about.description
    return {
        "openapi": "3.1.1",
        "info": info,
        "paths": paths,
        "tags": [{"name": tag} for tag in tags],
        "components": {
            "schemas": dict(sorted({**SCHEMAS, **writer.schemas.components}.items())),
            "responses": responses(),
            "parameters": PARAMETERS,
            "headers": HEADERS,
            "securitySchemes": writer.security,
        },
    }


def written(document: Json) -> bytes:
    """Return the JSON of a document, in the order in which it tells things.

    Raises:
        BadRequest: something that a type says of itself is no JSON.
    """
    encode(document)
    return msgspec.json.encode(document)


class _Writer:
    """Writes the operations of one document, and keeps the schemas that they refer to."""

    def __init__(self, auth: Sequence[Auth]) -> None:
        self.schemas = Schemas()
        self.security: dict[str, Json] = {}
        self._paths: dict[str, str] = {}
        self._kinds: dict[str, str] = {}
        for each in auth:
            ways = _security_of(each)
            self.security |= ways
            self._kinds |= dict.fromkeys(ways, getattr(each, "kind", ""))

    def path(self, template: Template) -> tuple[str, dict[str, str]]:
        """Return a path as it is shown, and what its places are called there.

        Paths that differ in the names of places alone are one to OpenAPI: the first names them.
        """
        shown = template.path.replace("...}", "}")
        shown = self._paths.setdefault(_PLACE.sub("{}", shown), shown)
        return shown, dict(zip(template.places, _PLACE.findall(shown), strict=True))

    def operation(
        self,
        route: Route | Aggregate | Forward,
        entry: CompiledRoute,
        method: str,
        names: Mapping[str, str],
    ) -> Json:
        """Return the Operation Object of a method of a route; `names` are those of its places."""
        if isinstance(route, Route):
            written = self._call(route.operation, entry)
        elif isinstance(route, Forward):
            written = self._forward(entry, method)
        else:
            written = self._aggregate(entry)
        for parameter in written["parameters"]:
            if parameter.get("in") == "path":
                parameter["name"] = names[parameter["name"]]
        told = [f"Answered within {route.deadline}."]
        if entry.is_strict:
            told.append("A body with a field that is unknown, or stands twice, is refused.")
        if entry.cache is not None:
            say_kept(written, entry.cache)
        if route.rate is not None:
            say_rated(written)
            of_whom = "client address" if entry.is_public else "principal"
            told.append(f"At most {route.rate.limit} for each {of_whom}, {entry.burst} at once.")
        if entry.scopes:
            told.append(f"Needs the scopes {', '.join(sorted(entry.scopes))}.")
        written["description"] = "\n\n".join(filter(None, (written["description"], " ".join(told))))
        written["security"] = (
            []
            if entry.is_public
            else [
                {name: sorted(entry.scopes)}
                for name in self.security
                if not entry.kinds or self._kinds[name] in entry.kinds
            ]
        )
        if not entry.is_public:
            written["responses"]["401"] = problem(401)
        written["responses"] = dict(sorted(written["responses"].items()))
        return written

    # -- one call ------------------------------------------------------------------------------

    def _call(self, operation: Operation[..., Any], entry: CompiledRoute) -> Json:
        shape, places = operation.shape, entry.template.places
        summary, _, more = operation.doc.partition("\n")
        parameters = [self._place(name, [shape.hints[name]]) for name in places]
        fields = {each.name: each for each in msgspec.structs.fields(shape.canonical)}
        rest = [name for name in shape.hints if name not in places]
        written: Json = {
            "operationId": _id_of(entry, operation),
            "tags": [operation.service],
            "summary": summary or operation.full_name,
            "description": more.strip(),
            "parameters": parameters,
        }
        if operation.method in BODILESS:
            parameters += [self._query(fields[name], shape.hints[name]) for name in rest]
        elif shape.body:
            written["requestBody"] = _json_body(self.schemas.of(shape.hints[shape.body]))
        elif rest:
            body = self._arguments([fields[name] for name in rest], shape.hints)
            written["requestBody"] = _json_body(body, is_required="required" in body)
        headers = {"synchromesh-trace": "Trace", "x-request-id": "RequestId"}
        if operation.is_command:
            parameters.append({"$ref": "#/components/parameters/IdempotencyKey"})
            headers["idempotency-key"] = "IdempotencyKey"
        parameters += _OUTER
        if entry.stand_in is not None:
            headers["synchromesh-fallback"] = "Fallback"
        refused: Json = {
            str(status): problem(status) for status in statuses(is_read=not operation.is_command)
        }
        if "requestBody" in written:
            refused |= {str(status): problem(status) for status in (408, 413, 415)}
        written["responses"] = {
            "200": answer("The answer.", self.schemas.of(shape.result), headers),
            **refused,
            **self._rejections(operation.raises),
        }
        return written

    def _place(self, name: str, hints: Iterable[Any]) -> Json:
        schemas: list[Schema] = []
        for hint in hints:
            schema = self.schemas.of(hint)
            if schema.get("type") == "string" and not schema.keys() & {"pattern", "enum", "format"}:
                schema = {**_SEGMENT, **schema}
                schema["minLength"] = max(1, schema["minLength"])
            if schema not in schemas:
                schemas.append(schema)
        schema = schemas[0] if len(schemas) == 1 else {"allOf": schemas}
        return {"name": name, "in": "path", "required": True, "schema": schema or _SEGMENT}

    def _query(self, field: msgspec.structs.FieldInfo, hint: Any) -> Json:
        schema = with_default(self.schemas.of(hint), field.default, field.default_factory)
        parameter: Json = {"name": field.name, "in": "query", "required": field.required}
        if is_text(hint):
            return {**parameter, "schema": schema}
        # What is no plain value is its JSON.
        return {**parameter, "content": {"application/json": {"schema": schema}}}

    def _arguments(
        self, fields: Iterable[msgspec.structs.FieldInfo], hints: Mapping[str, Any]
    ) -> Schema:
        properties: Json = {}
        needed = []
        for each in fields:
            schema = self.schemas.of(hints[each.name])
            properties[each.name] = with_default(schema, each.default, each.default_factory)
            if each.required:
                needed.append(each.name)
        schema = {"type": "object", "properties": properties, "additionalProperties": False}
        return {**schema, "required": needed} if needed else schema

    def _rejections(self, raises: Iterable[type[Rejection]]) -> Json:
        """Return the answers that a business no makes, each code with a schema of its own."""
        by_status: dict[int, dict[str, type[Rejection]]] = {}
        for rejection in raises:
            by_status.setdefault(rejection.status, {})[rejection.code] = rejection
        return {
            str(status): problem(
                status,
                [self._rejection(each) for each in found.values()],
                [f"`{code}`: {_line_of(each)}" for code, each in found.items()],
            )
            for status, found in by_status.items()
        }

    def _rejection(self, rejection: type[Rejection]) -> Schema:
        described: Schema = {
            "title": title_of(rejection),
            **doc_of(rejection),
            "allOf": [{"$ref": f"{PLACE}Problem"}],
            "type": "object",
            "properties": {
                "code": {"const": rejection.code},
                "status": {"const": rejection.status},
                "details": {"type": "object", "description": "What it says beside its words."},
            },
            "required": ["details"],
        }
        return self.schemas.add(rejection, described)

    # -- several calls, and none ---------------------------------------------------------------

    def _aggregate(self, entry: CompiledRoute) -> Json:
        hints: dict[str, list[Any]] = {place: [] for place in entry.template.places}
        for part in entry.parts.values():
            for parameter, place in part.from_path.items():
                hints[place].append(part.operation.shape.hints[parameter])
        branches = {name: branch_schema(self.schemas, part) for name, part in entry.parts.items()}
        marks = {name: mark_of(part) for name, part in entry.parts.items()}
        body: Schema = whole({"data": whole(branches), "branches": whole(marks)})
        headers = {
            "synchromesh-trace": "Trace",
            "x-request-id": "RequestId",
            "synchromesh-partial": "Partial",
        }
        needed = [part for part in entry.parts.values() if part.step.is_required]
        raises = {each: None for part in needed for each in part.operation.raises}
        told = [
            f"- `{name}`: {'required' if part.step.is_required else 'optional'}, "
            f"from {part.operation.full_name}{each_of(part)}"
            for name, part in entry.parts.items()
        ]
        return {
            "operationId": _id_of(entry),
            "tags": [_OWN_TAG],
            "summary": f"{', '.join(entry.parts)} as one answer",
            "description": "\n".join(told),
            "parameters": [*(self._place(name, each) for name, each in hints.items()), *_OUTER],
            "responses": {
                "200": answer("What the branches answered.", body, headers),
                **{str(status): problem(status) for status in statuses(is_read=True)},
                **self._rejections(raises),
            },
        }

    def _forward(self, entry: CompiledRoute, method: str) -> Json:
        passage, template = entry.passage, entry.template
        assert passage is not None, "it is a forward"
        anything: Json = {"*/*": {}}
        held = _SEGMENT if passage.has_slashes else _WITHIN
        written: Json = {
            "operationId": _id_of(entry, method=method),
            "tags": [passage.to],
            "summary": f"Passed on to {passage.to}",
            "description": f"The request and its answer pass as they are, at `{passage.path}`.",
            "parameters": [*(_opaque(name, held) for name in template.places), *_OUTER],
            "responses": {
                "default": {"description": "What the upstream answers.", "content": anything},
                **{str(status): problem(status, or_anything=True) for status in _REFUSED},
            },
        }
        if template.has_rest:
            rest = written["parameters"][len(template.places) - 1]
            rest["description"] = "All that follows in the path, slashes too; it may be empty."
            rest["schema"] = {"type": "string"}
        if method in _WITH_BODY:
            size = f"At most {passage.body_bytes_max} bytes."
            written["requestBody"] = {"description": size, "content": anything}
            written["responses"]["413"] = problem(413, or_anything=True)
        return written

    def __repr__(self) -> str:
        return f"<_Writer {self.schemas!r}>"


_OUTER: Final = [
    {"$ref": "#/components/parameters/RequestId"},
    {"$ref": "#/components/parameters/Traceparent"},
]


def _opaque(name: str, schema: Json) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _closeness(route: tuple[object, CompiledRoute]) -> tuple[bool, bool]:
    """Order routes by how close they are: what takes the rest, or any method, comes last."""
    template = route[1].template
    return template.has_rest, template.method == ANY


def _methods_of(template: Template) -> Sequence[str]:
    return _ANY if template.method == ANY else (template.method,)


def _id_of(
    entry: CompiledRoute, operation: Operation[..., Any] | None = None, *, method: str = ""
) -> str:
    """Return the name of an operation, which depends on its contract and its route alone.

    On the path of its contract it has the contract's name for it; elsewhere that and the route.
    """
    template = entry.template
    parts, is_plain = [method or template.method], True
    for part in template.path.split("/")[1:]:
        is_place = part.startswith("{")
        kind = "rest" if part.endswith("...}") else "by"
        parts.append(f"{kind}_{part[1:-1].removesuffix('...')}" if is_place else part)
        is_plain = is_plain and (is_place or _PLAIN_SEGMENT.fullmatch(part) is not None)
    route = ".".join(filter(None, parts))
    if not (is_plain and template.path.rstrip("/") == template.path):
        # Two paths could be spelt alike.
        route = f"{route}.{digest(template.path.encode())[:6]}"
    if operation is None:
        return route
    is_own = template.path == operation.path
    return operation.full_name if is_own else f"{operation.full_name}.{route}"


def _security_of(auth: Auth) -> Mapping[str, Json]:
    if isinstance(auth, DescribedAuth):
        return {name: dict(scheme) for name, scheme in auth.security_schemes().items()}
    name = type(auth).__name__
    told = f"As {name} takes it."
    return {name: {"type": "apiKey", "in": "header", "name": "authorization", "description": told}}


def _json_body(schema: Schema, *, is_required: bool = True) -> Json:
    return {"required": is_required, "content": {"application/json": {"schema": schema}}}


def _line_of(rejection: type[Rejection]) -> str:
    text = str(doc_of(rejection).get("description", "")) or title_of(rejection)
    return text.splitlines()[0]
