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
from synchromesh.gateway.branches import CompiledBranch
from synchromesh.gateway.caching import CompiledCache
from synchromesh.gateway.compiled import CompiledRoute
from synchromesh.gateway.composition import BranchStatus
from synchromesh.gateway.openapi_parts import HEADERS, PARAMETERS, SCHEMAS, problem, responses
from synchromesh.gateway.picks import Pick
from synchromesh.gateway.principal import Auth, DescribedAuth
from synchromesh.gateway.problems import statuses
from synchromesh.gateway.router import Template
from synchromesh.gateway.routes import Aggregate, Forward, Gateway, OpenApi, Route
from synchromesh.gateway.schemas import PLACE, Schema, Schemas, doc_of, title_of, with_default
from synchromesh.gateway.shapes import element_of, is_text, without_null

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
        >>> from synchromesh.gateway.check import compiled
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
        if entry.cache is not None:
            _say_kept(written, entry.cache)
        if route.rate is not None:
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
            "200": _answer("The answer.", self.schemas.of(shape.result), headers),
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
        branches = {name: self._branch(part) for name, part in entry.parts.items()}
        marks = {name: _mark_of(part) for name, part in entry.parts.items()}
        body: Schema = _whole({"data": _whole(branches), "branches": _whole(marks)})
        headers = {
            "synchromesh-trace": "Trace",
            "x-request-id": "RequestId",
            "synchromesh-partial": "Partial",
        }
        needed = [part for part in entry.parts.values() if part.step.is_required]
        raises = {each: None for part in needed for each in part.operation.raises}
        told = [
            f"- `{name}`: {'required' if part.step.is_required else 'optional'}, "
            f"from {part.operation.full_name}{_each_of(part)}"
            for name, part in entry.parts.items()
        ]
        return {
            "operationId": _id_of(entry),
            "tags": [_OWN_TAG],
            "summary": f"{', '.join(entry.parts)} as one answer",
            "description": "\n".join(told),
            "parameters": [*(self._place(name, each) for name, each in hints.items()), *_OUTER],
            "responses": {
                "200": _answer("What the branches answered.", body, headers),
                **{str(status): problem(status) for status in statuses(is_read=True)},
                **self._rejections(raises),
            },
        }

    def _branch(self, part: CompiledBranch) -> Schema:
        schema, is_sure = self._shown(part), part.step.is_required and not part.may_be_absent
        if part.step.each is not None:
            # An element without data is null, whatever the others are.
            items = schema if is_sure else _or_null(schema)
            schema = {"type": "array", "items": items, "maxItems": part.step.each.at_most}
        return schema if is_sure else _or_null(schema)

    def _shown(self, part: CompiledBranch) -> Schema:
        """Return the schema of what is shown of an answer."""
        result = part.operation.shape.result
        if part.empty is not None:
            result = without_null(result)[0]
        return self.schemas.of(result) if part.pick is None else self._picked(part.pick, result)

    def _picked(self, pick: Pick, kind: Any) -> Schema:
        kind, may_be_null = without_null(kind)
        element = element_of(kind)
        if element is not None:
            schema: Schema = {"type": "array", "items": self._picked(pick, element)}
        else:
            fields = {name: (self.schemas.of(each.kind), each) for name, each in pick.items()}
            schema = _whole(
                {
                    name: _or_null(field) if each.may_be_null else field
                    for name, (field, each) in fields.items()
                }
            )
        return _or_null(schema) if may_be_null else schema

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


def _answer(told: str, schema: Schema, headers: Mapping[str, str]) -> Json:
    return {
        "description": told,
        "headers": _headers(headers),
        "content": {"application/json": {"schema": schema}},
    }


def _headers(parts: Mapping[str, str]) -> Json:
    return {name: {"$ref": f"#/components/headers/{part}"} for name, part in parts.items()}


def _json_body(schema: Schema, *, is_required: bool = True) -> Json:
    return {"required": is_required, "content": {"application/json": {"schema": schema}}}


def _whole(properties: Json) -> Schema:
    """Return the schema of an object that always has all of its fields."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def _say_kept(written: Json, cache: CompiledCache) -> None:
    """Add to an operation what a client may do with an answer that it has."""
    names = {"etag": "ETag", "cache-control": "CacheControl"}
    if cache.max_age_s:
        names["age"] = "Age"
    told = _headers(names)
    written["responses"]["200"]["headers"] |= told
    written["responses"]["304"] = {
        "description": "The client has the answer already: it is the one of the `if-none-match`.",
        "headers": told,
    }
    written["parameters"].append({"$ref": "#/components/parameters/IfNoneMatch"})


def _each_of(part: CompiledBranch) -> str:
    each = part.step.each
    if each is None:
        return ""
    of = ".".join((each.source.branch, *each.source.fields))
    beyond = "a longer one is cut" if each.is_cut else "a longer one fails"
    return f", for each of `{of}`: at most {each.at_most}, and {beyond}"


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _mark_of(part: CompiledBranch) -> Schema:
    """Return the schema of what an aggregate says of a branch."""
    can_be = [BranchStatus.OK]
    stand_in, each, is_required = part.stand_in, part.step.each, part.step.is_required
    if each is not None:
        if stand_in is not None or each.is_cut or not is_required:
            can_be.append(BranchStatus.PARTIAL)
        if not (each.is_cut or is_required):
            can_be.append(BranchStatus.FAILED)
    elif stand_in is not None:
        can_be.append(BranchStatus.STALE if stand_in.static is None else BranchStatus.STATIC)
    if not is_required:
        can_be += [BranchStatus.REJECTED, BranchStatus.FAILED] if each is None else []
        can_be += [BranchStatus.SKIPPED] if part.step.needs else []
    if part.step.needs and (part.may_be_absent or not is_required):
        can_be.append(BranchStatus.ABSENT)
    status = {"enum": [each.value for each in can_be]}
    return {"allOf": [{"$ref": f"{PLACE}BranchMark"}], **_whole({"status": status})}


def _line_of(rejection: type[Rejection]) -> str:
    text = str(doc_of(rejection).get("description", "")) or title_of(rejection)
    return text.splitlines()[0]
