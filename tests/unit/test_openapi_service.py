"""The OpenAPI document of one service: valid, whole, and with nothing of a gateway in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import pytest
from contracts.billing import Billing
from contracts.orders import Orders
from openapi_spec_validator import OpenAPIV31SpecValidator

from cli_runs import Run, runner
from kinds_app import Kinds
from notes_app import TOML, Notes, write_config
from synchromesh import Contract, query
from synchromesh.calls import operations_of
from synchromesh.gateway.openapi import written
from synchromesh.gateway.openapi_service import service_openapi


class Elsewhere(Contract, Protocol, service="elsewhere", version="2.10"):
    """Belongs to a service that joins."""

    @query("GET /far/{place}")
    async def far(self, place: str) -> int: ...


class ElsewhereBefore(Contract, Protocol, service="elsewhere", version="2.9"):
    """Has the same path, and another one."""

    @query("GET /far/{town}")
    async def far(self, town: str) -> int: ...
    @query("GET /near")
    async def near(self) -> int: ...


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


def document_of(service: str, *contracts: type[object]) -> Any:
    return json.loads(written(service_openapi(service, contracts)))


def targets(value: Any) -> Any:
    """Yield every reference of a document."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        yield from value.get("discriminator", {}).get("mapping", {}).values()
    for each in value.values() if isinstance(value, dict) else value:
        if isinstance(each, dict | list):
            yield from targets(each)


@pytest.mark.parametrize("contract", [Kinds, Notes, Orders, Billing])
def test_the_document_is_valid_and_has_every_operation(contract: type[object]) -> None:
    """On the path of the contract, under the contract's name; what it refers to is there."""
    document = document_of("any", contract)
    assert [str(error) for error in OpenAPIV31SpecValidator(document).iter_errors()] == []
    found = {
        f"{method.upper()} {path}": told["operationId"]
        for path, methods in document["paths"].items()
        for method, told in methods.items()
    }
    operations = operations_of(contract).values()
    assert found == {f"{each.method} {each.path}": each.full_name for each in operations}
    for target in set(targets(document)):
        place = document
        for step in target.removeprefix("#/").split("/"):
            place = place[step]
        assert place


def test_it_says_what_travels_with_a_call_and_nothing_of_a_gateway() -> None:
    """Who asks shows a credential; no header is named that a gateway writes or reads."""
    document = document_of("notes", Notes)
    told = document["paths"]["/notes"]["post"]
    assert told["security"] == [{"client": []}]
    assert document["components"]["securitySchemes"]["client"]["name"] == "synchromesh-credential"
    assert [each["$ref"].rpartition("/")[2] for each in told["parameters"]] == [
        "IdempotencyKey",
        "Traceparent",
        "DeadlineMs",
    ]
    assert {"200", "400", "401", "403", "404", "409", "503"} <= set(told["responses"])
    text = json.dumps(document)
    for name in ("x-request-id", "synchromesh-trace", "Answered within", "www-authenticate"):
        assert name not in text
    assert document["components"]["responses"]["Problem503"]["headers"].keys() == {"retry-after"}


def test_what_is_known_of_a_service_by_several_classes_is_one_document() -> None:
    """The first has a path, and the newest version counts as a number."""
    document = document_of("elsewhere", ElsewhereBefore, Elsewhere)
    assert document["info"] == {"title": "elsewhere", "version": "2.10"}
    assert list(document["paths"]) == ["/far/{town}", "/near"]


def test_the_command_line_prints_it_for_each_service_it_knows(tmp_path: Path, run: Run) -> None:
    """Of one that joins, too, where its contract was imported; another name is a mistake."""
    joining = TOML.replace('"notebook"', '"notebook"\njoined = ["elsewhere", "unheard"]')
    folder = write_config(tmp_path, joining)
    told = run(folder, "openapi", "notes")
    assert (told.code, told.err) == (0, "")
    assert json.loads(told.out) == document_of("notes", Notes)
    assert json.loads(run(folder, "openapi", "elsewhere").out)["paths"].keys() >= {"/near"}
    assert run(folder, "openapi", "notes", "--page").out.startswith("<!doctype html>")
    for name, said in (
        ("note", "there is no service 'note'; there are notes, elsewhere, unheard"),
        ("unheard", "no contract of 'unheard' is known here; let a service that calls it import"),
    ):
        told = run(folder, "openapi", name)
        assert (told.code, said in told.err) == (2, True), told.err
