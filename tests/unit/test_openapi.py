"""The OpenAPI document of a gateway: it is valid, whole, and its names depend on nothing else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest
from gateway import gateway as servo_works
from msgspec import Struct, defstruct
from openapi_spec_validator import OpenAPIV31SpecValidator

import gateway_fakes
from cli_runs import Run, runner
from kinds_app import ABOUT, GATEWAY, Found, Kinds, Money, Page, Thing, Tree
from notes_app import TOML, Notes, write_config
from servo_works_world import FOLDER
from synchromesh import JWT, Aggregate, ApiKeys, Branch, Forward, Gateway, Rate, Route, Static
from synchromesh.gateway import Cache, Each, OpenApi, check, openapi_of, outline
from synchromesh.gateway.openapi import written
from synchromesh.gateway.schemas import Schemas

T = TypeVar("T")


def document_of(gateway: Gateway) -> Any:
    """Return a gateway's document, as a client reads it."""
    return json.loads(written(openapi_of(gateway)))


def operations_in(document: Any) -> dict[str, Any]:
    """Return the operations of a document by method and path."""
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


# -- what is described -----------------------------------------------------------------------------


@pytest.mark.parametrize("gateway", [servo_works, GATEWAY], ids=["servo-works", "every kind"])
def test_the_document_is_valid_and_has_every_route(gateway: Gateway) -> None:
    """The validator of OpenAPI 3.1 finds nothing, and each route is an operation of its own id."""
    document = document_of(gateway)
    assert [str(error) for error in OpenAPIV31SpecValidator(document).iter_errors()] == []
    found = operations_in(document)
    assert set(found) == {route.route for route in gateway.routes}
    assert len({each["operationId"] for each in found.values()}) == len(found)


def test_every_reference_leads_somewhere() -> None:
    """What is referred to is there, headers and mappings of discriminators as well."""
    document = document_of(GATEWAY)

    def targets(value: Any) -> Any:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                yield value["$ref"]
            yield from value.get("discriminator", {}).get("mapping", {}).values()
        for each in value.values() if isinstance(value, dict) else value:
            if isinstance(each, dict | list):
                yield from targets(each)

    found = set(targets(document))
    assert len(found) > 30
    for target in found:
        place = document
        for step in target.removeprefix("#/").split("/"):
            place = place[step]
        assert place


def test_a_command_says_all_that_may_come() -> None:
    """Its key, its body, and each rejection as a schema of its own beside the problems."""
    document = document_of(GATEWAY)
    keep = operations_in(document)["POST /things"]
    assert (keep["operationId"], keep["tags"], keep["summary"]) == (
        "kinds.keep",
        ["kinds"],
        "Keep a thing.",
    )
    assert "It is there for ever, as <b>whatever</b> it is." in keep["description"]
    assert "At most 9000/s for each principal, 99 at once." in keep["description"]
    names = {each.get("$ref", "").rpartition("/")[2] for each in keep["parameters"]}
    assert names == {"IdempotencyKey", "RequestId", "Traceparent"}
    assert keep["requestBody"] == {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": _place("Thing")}}},
    }
    assert set(keep["responses"]) == {
        "200",
        *map(str, (400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 500, 502, 503, 504)),
    }
    schema = keep["responses"]["409"]["content"]["application/problem+json"]["schema"]
    assert schema == {
        "anyOf": [{"$ref": _place(n)} for n in ("Taken", "Broken")]
        + [{"$ref": "#/components/schemas/Problem"}]
    }
    taken = document["components"]["schemas"]["kinds_app.Taken"]
    assert taken["properties"]["code"] == {"const": "taken"}
    assert taken["required"] == ["details"]
    assert "retry-after" in document["components"]["responses"]["Problem503"]["headers"]


def test_a_query_says_how_its_arguments_are_written() -> None:
    """Plain values are texts, a list is JSON, and a place is never empty; there is no 409."""
    one = operations_in(document_of(GATEWAY))["GET /things/{id}"]
    given = {each["name"]: each for each in one["parameters"] if "name" in each}
    assert given["id"]["schema"] == {
        "type": "string",
        "minLength": 1,
        "pattern": r"^[^\u0000-\u001f\u007f]+$",
    }
    assert given["limit"]["schema"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 50,
        "default": 10,
    }
    texts = {"type": "array", "items": {"type": "string"}, "default": []}
    assert given["texts"]["content"] == {"application/json": {"schema": texts}}
    assert not given["colour"]["required"]
    assert set(one["responses"]) == {"200", *map(str, (400, 403, 404, 429, 500, 502, 503, 504))}
    assert "synchromesh-fallback" in one["responses"]["200"]["headers"]
    assert "requestBody" not in one


def test_arguments_that_are_no_struct_are_an_object_that_takes_no_more() -> None:
    """The codec refuses unknown arguments, and so does the schema."""
    note = operations_in(document_of(GATEWAY))["PUT /things/{id}/notes"]
    assert note["requestBody"]["content"]["application/json"]["schema"] == {
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "weight": {"type": "number", "default": 0.0},
        },
        "additionalProperties": False,
        "required": ["text"],
    }
    assert note["responses"]["200"]["content"] == {"application/json": {"schema": {"type": "null"}}}


def test_an_aggregate_says_how_its_branches_are_marked() -> None:
    """A required branch always has data; each says what it can come to, and what of it is told."""
    page = operations_in(document_of(GATEWAY))["GET /pages/{id}"]
    body = page["responses"]["200"]["content"]["application/json"]["schema"]
    data, marks = body["properties"]["data"], body["properties"]["branches"]
    assert data["required"] == marks["required"] == ["thing", "number", "same"]
    assert data["properties"]["thing"] == {"$ref": _place("Found")}
    assert data["properties"]["same"] == {"anyOf": [{"$ref": _place("Found")}, {"type": "null"}]}
    can_be = {
        name: mark["properties"]["status"]["enum"] for name, mark in marks["properties"].items()
    }
    late = ["rejected", "failed", "skipped", "absent"]
    assert can_be == {
        "thing": ["ok"],
        "number": ["ok", "static", *late],
        "same": ["ok", "stale", *late],
    }
    assert "synchromesh-partial" in page["responses"]["200"]["headers"]
    # The business no of a required branch is the whole's.
    assert "missing" in page["responses"]["404"]["description"]


def test_an_aggregate_says_what_is_shown_of_each_element() -> None:
    """Arrays have their bound, elements may be null, and picked fields are the only ones."""
    of_lines = Each("basket.lines", at_most=5, beyond="cut")
    page = Aggregate(
        "GET /baskets/{id}",
        branches={
            "basket": Branch(
                gateway_fakes.Orders.basket,
                args={"id": "path.id"},
                required=True,
                pick={"number": "id", "articles": "lines"},
            ),
            "machines": Branch(
                gateway_fakes.Fleet.machine,
                args={"id": "each.sku"},
                each=of_lines,
                pick={"city": "site.city"},
            ),
            "names": Branch(gateway_fakes.Fleet.names, required=True, empty=Static(["none"])),
            "all": Branch(
                gateway_fakes.Fleet.machine,
                args={"id": "each"},
                each=Each("names", at_most=3),
                required=True,
            ),
        },
    )
    document = document_of(Gateway(auth=[gateway_fakes.SHOP], routes=[page]))
    assert [str(error) for error in OpenAPIV31SpecValidator(document).iter_errors()] == []
    (operation,) = operations_in(document).values()
    assert (
        "for each of `basket.lines`: at most 5, and a longer one is cut"
        in (operation["description"])
    )
    body = operation["responses"]["200"]["content"]["application/json"]["schema"]
    data, marks = body["properties"]["data"]["properties"], body["properties"]["branches"]
    line = {"$ref": "#/components/schemas/gateway_fakes.Line"}
    null = {"type": "null"}
    assert data["basket"] == {
        "type": "object",
        "properties": {
            "number": {"type": "string"},
            "articles": {"anyOf": [{"type": "array", "items": line}, null]},
        },
        "required": ["number", "articles"],
    }
    city = {"anyOf": [{"type": "string"}, null]}
    shown = {"type": "object", "properties": {"city": city}, "required": ["city"]}
    machines = {"type": "array", "items": {"anyOf": [shown, null]}, "maxItems": 5}
    assert data["machines"] == {"anyOf": [machines, null]}
    assert data["names"] == {"type": "array", "items": {"type": "string"}}
    machine = {"$ref": "#/components/schemas/gateway_fakes.Machine"}
    assert data["all"] == {"type": "array", "items": machine, "maxItems": 3}
    can_be = {
        name: mark["properties"]["status"]["enum"] for name, mark in marks["properties"].items()
    }
    assert can_be == {
        "basket": ["ok"],
        "machines": ["ok", "partial", "skipped", "absent"],
        "names": ["ok"],
        "all": ["ok"],
    }


def test_a_rate_is_told_by_every_answer_that_counts() -> None:
    """Of a call, of what may be kept, and of what is passed on; others say nothing of it."""
    rate, machine = Rate("20/s"), gateway_fakes.Fleet.machine
    document = document_of(
        Gateway(
            auth=[gateway_fakes.SHOP],
            routes=[
                Route("GET /a/{id}", machine, cache=Cache(), rate=rate),
                Forward("GET /b", to="store", rate=rate),
                Route("GET /c/{id}", machine),
            ],
        )
    )
    assert [str(error) for error in OpenAPIV31SpecValidator(document).iter_errors()] == []
    call, passed, free = operations_in(document).values()
    told = {"ratelimit", "ratelimit-policy"}
    for answer in (call["responses"]["200"], call["responses"]["304"]):
        assert told <= set(answer["headers"])
    assert told <= set(passed["responses"]["default"]["headers"])
    assert told <= set(document["components"]["responses"]["Problem429"]["headers"])
    assert not told & set(free["responses"]["200"]["headers"])


def test_a_problem_tells_its_mistakes_and_a_strict_route_says_so() -> None:
    """The members of `errors` are described, and what is refused is said."""
    place = gateway_fakes.Orders.place
    document = document_of(
        Gateway(
            auth=[gateway_fakes.SHOP],
            routes=[Route("POST /a", place, strict=True), Route("POST /b", place)],
        )
    )
    strict, loose = operations_in(document).values()
    words = "A body with a field that is unknown, or stands twice, is refused."
    assert words in strict["description"]
    assert words not in loose["description"]
    told = document["components"]["schemas"]["Problem"]["properties"]["errors"]["items"]
    assert set(told["properties"]) == {"detail", "pointer", "name", "in"}


def test_what_may_be_kept_says_so() -> None:
    """There is a 304, a tag to ask with, and the age where something is kept here."""
    machine = gateway_fakes.Fleet.machine
    document = document_of(
        Gateway(
            auth=[gateway_fakes.SHOP],
            routes=[
                Route("GET /a/{id}", machine, cache=Cache("30s")),
                Route("GET /b/{id}", machine, cache=Cache()),
                Route("GET /c/{id}", machine),
            ],
        )
    )
    assert [str(error) for error in OpenAPIV31SpecValidator(document).iter_errors()] == []
    kept, asked, plain = operations_in(document).values()
    tag = {"$ref": "#/components/parameters/IfNoneMatch"}
    assert {"etag", "cache-control", "age"} <= set(kept["responses"]["200"]["headers"])
    assert set(kept["responses"]["304"]["headers"]) == {"etag", "cache-control", "age"}
    assert set(asked["responses"]["304"]["headers"]) == {"etag", "cache-control"}
    assert tag in kept["parameters"]
    assert tag in asked["parameters"]
    assert "304" not in plain["responses"]
    assert tag not in plain["parameters"]


def test_a_forward_is_opaque() -> None:
    """Its method and its places are told, and that the rest is the upstream's."""
    upload = operations_in(document_of(GATEWAY))["PUT /uploads/{name}"]
    assert (upload["operationId"], upload["tags"]) == ("PUT.uploads.by_name", ["store"])
    assert upload["requestBody"]["content"] == {"*/*": {}}
    assert upload["responses"]["default"]["content"] == {"*/*": {}}
    assert set(upload["responses"]) >= {"401", "413", "429", "503", "504"}


def test_a_whole_application_is_told_by_each_method() -> None:
    """Of ANY and of a rest; a closer route goes before it, and equal paths are one path."""
    gateway = Gateway(
        routes=[
            Forward("ANY /app/{path...}", to="old", path="/{path...}", public=True),
            Forward("PUT /app/{name}", to="store", path="/{name}", public=True),
            Forward("GET /app/{id}", to="new", path="/x/{id}", public=True),
        ]
    )
    document = document_of(gateway)
    assert OpenAPIV31SpecValidator(document).is_valid()
    (path, methods), *others = document["paths"].items()
    assert (path, others) == ("/app/{name}", [])
    assert {method: each["tags"] for method, each in methods.items()} == {
        "put": ["store"],
        "get": ["new"],
        "post": ["old"],
        "patch": ["old"],
        "delete": ["old"],
    }
    assert methods["post"]["operationId"] == "POST.app.rest_path"
    assert methods["get"]["operationId"] == "GET.app.by_id"
    assert all(each["parameters"][0]["name"] == "name" for each in methods.values())
    assert methods["post"]["parameters"][0]["schema"] == {"type": "string"}


@pytest.mark.parametrize(("encoded_slashes", "held"), [(False, ""), (True, "/\\")])
def test_a_place_of_a_forward_holds_what_passes(encoded_slashes: bool, held: str) -> None:
    """A slash or a backslash does only where the route says so."""
    route = Forward("PUT /app/{name}", to="store", public=True, encoded_slashes=encoded_slashes)
    operation = document_of(Gateway(routes=[route]))["paths"]["/app/{name}"]["put"]
    pattern = operation["parameters"][0]["schema"]["pattern"]
    assert [each for each in "a%/\\\n" if re.search(pattern, each)] == [*"a%", *held]


def test_security_is_that_of_the_gateway() -> None:
    """Any of its credentials will do, with the scopes of the route; a public route needs none."""
    tokens = JWT(issuer="https://id.servo.works", audience="api", jwks="keys.json")
    document = document_of(replace(GATEWAY, auth=[ApiKeys(), tokens]))
    assert OpenAPIV31SpecValidator(document).is_valid()
    schemes = document["components"]["securitySchemes"]
    assert {name: (each["type"], each.get("scheme")) for name, each in schemes.items()} == {
        "ApiKey": ("apiKey", None),
        "ApiKeyBearer": ("http", "bearer"),
        "JWT_id.servo.works": ("http", "bearer"),
    }
    found = operations_in(document)
    assert found["POST /things"]["security"] == [{name: ["orders:write"]} for name in schemes]
    assert found["GET /shapes"]["security"] == [{name: [] for name in [each]} for each in schemes]
    assert found["GET /things/{id}"]["security"] == []
    # What does not say how it is asked is named at least.
    own = document_of(GATEWAY)
    assert own["components"]["securitySchemes"]["Token"]["name"] == "authorization"


# -- names -----------------------------------------------------------------------------------------


def test_a_name_depends_on_its_type_alone() -> None:
    """A type has one name in every document, whatever meets it there, and in whatever order."""
    together, apart = Schemas(), [Schemas(), Schemas(), Schemas()]
    kinds = [gateway_fakes.Order, Found, Page[Money]]
    for kind in reversed(kinds):
        together.of(kind)
    for kind, alone in zip(kinds, apart, strict=True):
        alone.of(kind)
    merged = {name: each for alone in apart for name, each in alone.components.items()}
    assert together.components == merged
    assert set(merged) == {
        "gateway_fakes.Order",
        "kinds_app.Found",
        "kinds_app.Money",
        "kinds_app.Page-of-kinds_app.Money",
    }


def test_types_of_one_name_are_told_apart() -> None:
    """Two modules have a class of a name each; so do two functions, told apart by what they are."""
    from contracts.orders import PlaceOrder

    both = Schemas()
    both.of(PlaceOrder)
    both.of(gateway_fakes.PlaceOrder)
    assert set(both.components) >= {"contracts.orders.PlaceOrder", "gateway_fakes.PlaceOrder"}

    def local(kind: type) -> type:
        # As a class of a function, it is found under no name.
        return defstruct("Twin", [("value", kind)], module="test.<locals>")

    one, other, same = local(int), local(str), local(int)
    first, second = Schemas(), Schemas()
    refs = [first.of(one)["$ref"], first.of(other)["$ref"], first.of(same)["$ref"]]
    assert refs[0] == refs[2] != refs[1]
    assert [second.of(other)["$ref"], second.of(one)["$ref"]] == [refs[1], refs[0]]
    assert all(ref.startswith("#/components/schemas/test.-locals-.Twin.") for ref in refs)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Page[int], "kinds_app.Page-of-int"),
        (Page[list[int]], "kinds_app.Page-of-list-of-int-end"),
        (Page[Page[int]], "kinds_app.Page-of-kinds_app.Page-of-int-end"),
        (Page[dict[str, Tree]], "kinds_app.Page-of-dict-of-str-and-kinds_app.Tree-end"),
    ],
)
def test_a_generic_is_named_with_its_arguments(kind: Any, name: str) -> None:
    """So that each use of it has a name of its own, within what OpenAPI allows."""
    schemas = Schemas()
    schemas.of(kind)
    assert name in schemas.components


def test_every_name_is_one_that_openapi_takes() -> None:
    """Also one with letters of other alphabets, or of a union in a generic."""

    class Größe(Struct, Generic[T]):
        value: T

    schemas = Schemas()
    schemas.of(Größe[int | None])
    schemas.of(Page[str | None])
    assert len(schemas.components) == 2
    assert all(re.fullmatch(r"[a-zA-Z0-9._-]+", name) for name in schemas.components)


def test_an_operation_keeps_its_id_whatever_routes_there_are() -> None:
    """On the path of its contract it has the contract's name, elsewhere that and the route."""
    routes: list[Route | Aggregate | Forward] = [
        Route("GET /elsewhere/{id}", Kinds.one, public=True),
        Route("GET /things/{id}", Kinds.one, public=True),
        Forward("GET /a/{b}", to="store", public=True),
        Forward("GET /a/by_b", to="store", public=True),
        Forward("GET /a.b", to="store", public=True),
        Forward("GET /a/b", to="store", public=True),
        Forward("GET /a/b/", to="store", public=True),
    ]
    ids = {}
    for each in routes:
        document = document_of(Gateway(routes=[each]))
        ids[each.route] = operations_in(document)[each.route]["operationId"]
    assert ids["GET /things/{id}"] == "kinds.one"
    assert ids["GET /elsewhere/{id}"] == "kinds.one.GET.elsewhere.by_id"
    assert len(set(ids.values())) == len(routes)
    found = operations_in(document_of(Gateway(routes=routes)))
    assert {route: each["operationId"] for route, each in found.items()} == ids


# -- mistakes --------------------------------------------------------------------------------------


@dataclass
class Wrong:
    """Something else."""


@pytest.mark.parametrize(
    ("about", "mistake"),
    [
        (OpenApi(path="/things/{id}"), "openapi: its path '/things/{id}' has a place"),
        (OpenApi(path="openapi.json"), "openapi: its path 'openapi.json' is no path"),
        (OpenApi(path="/shapes"), "GET /shapes and GET /shapes have the same path"),
        (OpenApi(path="/a", reference="/a"), "GET /a and GET /a have the same path"),
        (OpenApi(title=""), "openapi: its title is empty"),
        (OpenApi(version=2), "openapi: its version is empty, or no text"),  # type: ignore[arg-type]
        (Wrong(), "openapi is a Wrong; write OpenApi(title=...)"),
        ("/openapi.json", "openapi is a str; write OpenApi(title=...)"),
    ],
)
def test_a_mistake_is_named(about: Any, mistake: str) -> None:
    """Before anything listens, like every mistake of a gateway."""
    (found,) = check(replace(GATEWAY, openapi=about))
    assert found.startswith(mistake)


def test_a_document_behind_no_auth_is_a_mistake() -> None:
    """Nobody could read it, unless it is public."""
    routes = [Route("GET /things/{id}", Kinds.one, public=True)]
    (found,) = check(Gateway(routes=routes, openapi=OpenApi()))
    assert "say public=True" in found
    assert check(Gateway(routes=routes, openapi=OpenApi(public=True))) == ()
    # What is not served needs nobody.
    assert check(Gateway(routes=routes, openapi=OpenApi(path=""))) == ()


def test_the_outline_has_what_describes_the_gateway() -> None:
    """`gateway explain` shows who may read it."""
    pages = [told for told in outline(GATEWAY) if told.kind == "page"]
    assert [(told.route, told.who) for told in pages] == [
        ("GET /openapi.json", "any principal"),
        ("GET /reference", "any principal"),
    ]


# -- the command line ------------------------------------------------------------------------------

described = Gateway(
    auth=[ApiKeys()],
    routes=[Route("POST /notes", Notes.write)],
    openapi=OpenApi(title="notes", version="3.0"),
)
plain = replace(described, openapi=None)


@pytest.fixture(autouse=True)
def _import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture(name="run")
def _run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


def folder_of(folder: Path, gateway: str) -> Path:
    """Make the folder of a system with one of the gateways of this module."""
    return write_config(folder, f'{TOML}\n[gateway]\napp = "{__name__}:{gateway}"\n')


def test_the_command_line_prints_what_is_served(tmp_path: Path, run: Run) -> None:
    """Nothing has to run; a file is replaced whole, with the same bytes each time."""
    folder = folder_of(tmp_path, "described")
    first = run(folder, "openapi")
    assert (first.code, first.err) == (0, "")
    assert json.loads(first.out) == document_of(described)
    out = tmp_path / "openapi.json"
    for _ in range(2):
        assert run(folder, "openapi", "--out", str(out)) == (0, "", "")
        assert out.read_text() == first.out
    assert run(folder, "openapi", "--page").out.startswith("<!doctype html>")
    assert not list(tmp_path.glob(".openapi*"))


def test_without_a_title_it_has_the_name_of_the_system(tmp_path: Path, run: Run) -> None:
    """A gateway that serves no document can be described all the same."""
    told = json.loads(run(folder_of(tmp_path, "plain"), "openapi").out)
    assert told["info"] == {"title": "notebook", "version": "1.0"}


def test_what_cannot_be_written_or_read_is_said(tmp_path: Path, run: Run) -> None:
    """A missing folder, a system without a gateway, and a gateway with mistakes end with 2."""
    folder = folder_of(tmp_path, "described")
    told = run(folder, "openapi", "--out", str(tmp_path / "none" / "x.json"))
    assert told.code == 2
    assert "cannot be written: No such file or directory" in told.err
    (tmp_path / "bare").mkdir()
    told = run(write_config(tmp_path / "bare", TOML), "openapi")
    assert (told.code, "names no gateway" in told.err) == (2, True)


def test_servo_works_is_described_from_its_folder(run: Run) -> None:
    """As CI would do it: the same bytes as of the definition itself."""
    told = json.loads(run(FOLDER, "openapi").out)
    assert told["info"]["title"] == "servo-works"
    assert told["paths"] == document_of(servo_works)["paths"]


def test_the_bytes_depend_on_nothing_but_the_definition() -> None:
    """Neither on the order of sets and mappings in a process, nor on where it runs."""
    made = {
        subprocess.run(
            [sys.executable, "-m", "synchromesh.cli", "--folder", str(FOLDER), "openapi"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            timeout=300,
        ).stdout
        for seed in ("1", "4711")
    }
    assert len(made) == 1
    assert len(made.pop()) > 10_000


def _place(name: str) -> str:
    return f"#/components/schemas/kinds_app.{name}"


def test_what_is_described_are_the_types_of_the_contract() -> None:
    """The fields are named as they are sent, and defaults are told."""
    schemas = Schemas()
    assert schemas.of(Thing) == {"$ref": _place("Thing")}
    closed = schemas.components["kinds_app.Closed"]
    assert closed["properties"].keys() == {"longName", "moreOfIt"}
    assert (closed["required"], closed["additionalProperties"]) == (["longName"], False)
    assert schemas.components["kinds_app.Row"]["minItems"] == 2
    assert schemas.components["kinds_app.Colour"]["enum"] == ["red", "blue"]
    assert schemas.components["kinds_app.Colour"]["description"] == "What it is painted in."
    assert "description" not in schemas.components["kinds_app.Level"]
    assert "description" not in schemas.components["kinds_app.Money"]
    assert schemas.of(dict[int, str])["propertyNames"] == {"pattern": "^(0|-?[1-9][0-9]*)$"}
    assert ABOUT.title == "kinds"
