"""The OpenAPI document of one service: its contract as it is called by HTTP, past no gateway.

It is that of a gateway which had a route for each operation, on the path of the contract, without
what a gateway adds: its headers, its deadlines and its ways to know who asks. What stands in for
them is what travels with every call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from synchromesh.calls.contract import Operation, operations_of, version_of
from synchromesh.gateway.checking import compiled
from synchromesh.gateway.openapi import Json, openapi
from synchromesh.gateway.openapi_parts import PARAMETERS, problem
from synchromesh.gateway.routes import Gateway, OpenApi, Route

_SCHEME: Final = "client"
_SECURITY: Final = {
    "type": "apiKey",
    "in": "header",
    "name": "synchromesh-credential",
    "description": "A JWT by which a client says who it is: HS256 by the key of its credential "
    "`smc_ID_KEY`, with `ID` as `kid`, this service as `aud`, and an `exp` within five minutes.",
}
_PARAMETERS: Final = {
    "IdempotencyKey": {
        **PARAMETERS["IdempotencyKey"],
        "description": "Names the command, so that it takes effect once, however often it is sent: "
        "the same key and arguments get the same answer.",
    },
    "Traceparent": PARAMETERS["Traceparent"],
    "DeadlineMs": {
        "name": "deadline-ms",
        "in": "header",
        "required": False,
        "description": "For how long the caller waits still, in milliseconds.",
        "schema": {"type": "integer", "minimum": 1},
    },
}
_WAITED: Final = {"retry-after"}


def service_openapi(service: str, contracts: Sequence[type[object]]) -> Json:
    """Return the OpenAPI 3.1 document of a service.

    Args:
        service: its name.
        contracts: what is known of its contract, by one class or by several.

    Example:
        >>> from typing import Protocol
        >>> from synchromesh.calls import Contract, query
        >>> class Inventory(Contract, Protocol, service="inventory", version="1.0"):
        ...     @query("GET /stock/{sku}")
        ...     async def stock(self, sku: str) -> int: ...
        >>> document = service_openapi("inventory", [Inventory])
        >>> document["info"], document["paths"]["/stock/{sku}"]["get"]["security"]
        ({'title': 'inventory', 'version': '1.0'}, [{'client': []}])
    """
    operations: dict[tuple[str, str], Operation[..., Any]] = {}
    for contract in contracts:
        for each in operations_of(contract).values():
            operations.setdefault((each.method, each.blank_path), each)
    routes = [
        Route(f"{each.method} {each.path}", each, public=True) for each in operations.values()
    ]
    newest = max((version_of(contract) for contract in contracts), key=_number, default="0.0")
    about = OpenApi(title=service, version=newest, path="")
    gateway = Gateway(routes=routes, openapi=about)
    document = openapi(gateway, compiled(gateway))
    for path in document["paths"].values():
        for written in path.values():
            _as_called(written)
    components = document["components"]
    for each in components["responses"].values():
        _without_gateway(each)
    components["schemas"].pop("BranchMark", None)
    components["parameters"] = _PARAMETERS
    components["headers"] = {"RetryAfter": components["headers"]["RetryAfter"]}
    components["securitySchemes"] = {_SCHEME: _SECURITY}
    return document


def _as_called(written: Json) -> None:
    """Change an Operation Object from what a gateway answers to what the service does."""
    refs = {f"#/components/parameters/{name}" for name in _PARAMETERS}
    written["parameters"] = [
        each for each in written["parameters"] if "$ref" not in each or each["$ref"] in refs
    ]
    written["parameters"].append({"$ref": "#/components/parameters/DeadlineMs"})
    # The last paragraph tells the deadline of a route.
    written["description"] = written["description"].rpartition("\n\n")[0]
    written["security"] = [{_SCHEME: []}]
    answers = written["responses"]
    answers.pop("415", None)  # a service reads JSON by whatever name it comes
    for status in (401, 404):
        answers.setdefault(str(status), problem(status))
    for each in answers.values():
        _without_gateway(each)
    written["responses"] = dict(sorted(answers.items()))


def _without_gateway(answer: Json) -> None:
    headers = {name: of for name, of in answer.get("headers", {}).items() if name in _WAITED}
    answer.pop("headers", None)
    if headers:
        answer["headers"] = headers


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
