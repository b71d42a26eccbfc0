"""What an OpenAPI document says of answers: those of aggregates, those that are kept, and rates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from synchromesh.gateway.branches import CompiledBranch
from synchromesh.gateway.caching import CompiledCache
from synchromesh.gateway.composition import BranchStatus
from synchromesh.gateway.picks import Pick
from synchromesh.gateway.schemas import PLACE, Schema, Schemas
from synchromesh.gateway.shapes import element_of, without_null


def answer(told: str, schema: Schema, headers: Mapping[str, str]) -> dict[str, Any]:
    """Return the answer of an operation, with what its headers are called in the document."""
    return {
        "description": told,
        "headers": _headers(headers),
        "content": {"application/json": {"schema": schema}},
    }


def _headers(parts: Mapping[str, str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{part}"} for name, part in parts.items()}


def whole(properties: dict[str, Any]) -> Schema:
    """Return the schema of an object that always has all of its fields."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def say_kept(written: dict[str, Any], cache: CompiledCache) -> None:
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


def say_rated(written: dict[str, Any]) -> None:
    """Add to an operation what its answers say of a rate."""
    told = _headers({"ratelimit": "RateLimit", "ratelimit-policy": "RateLimitPolicy"})
    for status in written["responses"].keys() & {"200", "304", "default"}:
        answer = written["responses"][status]
        answer["headers"] = {**answer.get("headers", {}), **told}


def branch_schema(schemas: Schemas, part: CompiledBranch) -> Schema:
    """Return the schema of what an aggregate has of a branch."""
    schema, is_sure = _shown(schemas, part), part.step.is_required and not part.may_be_absent
    if part.step.each is not None:
        # An element without data is null, whatever the others are.
        items = schema if is_sure else _or_null(schema)
        schema = {"type": "array", "items": items, "maxItems": part.step.each.at_most}
    return schema if is_sure else _or_null(schema)


def _shown(schemas: Schemas, part: CompiledBranch) -> Schema:
    """Return the schema of what is shown of an answer."""
    result = part.operation.shape.result
    if part.empty is not None:
        result = without_null(result)[0]
    return schemas.of(result) if part.pick is None else _picked(schemas, part.pick, result)


def _picked(schemas: Schemas, pick: Pick, kind: Any) -> Schema:
    kind, may_be_null = without_null(kind)
    element = element_of(kind)
    if element is not None:
        schema: Schema = {"type": "array", "items": _picked(schemas, pick, element)}
    else:
        fields = {name: (schemas.of(each.kind), each) for name, each in pick.items()}
        schema = whole(
            {
                name: _or_null(field) if each.may_be_null else field
                for name, (field, each) in fields.items()
            }
        )
    return _or_null(schema) if may_be_null else schema


def each_of(part: CompiledBranch) -> str:
    """Say of which array a branch is, and for how many of it; "" for none."""
    each = part.step.each
    if each is None:
        return ""
    of = ".".join((each.source.branch, *each.source.fields))
    beyond = "a longer one is cut" if each.is_cut else "a longer one fails"
    return f", for each of `{of}`: at most {each.at_most}, and {beyond}"


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def mark_of(part: CompiledBranch) -> Schema:
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
    return {"allOf": [{"$ref": f"{PLACE}BranchMark"}], **whole({"status": status})}
