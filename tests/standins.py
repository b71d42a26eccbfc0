"""What stands in for packages that the documentation's code uses, where they are not installed.

Each has the shape of the real one in what the pages use of it. `make sync` installs all of them,
and then the real ones are taken.
"""

from __future__ import annotations

import importlib.util
import sqlite3
import sys
import types
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest

# -- httpx ---------------------------------------------------------------------------------------


@dataclass
class Response:
    status_code: int


@dataclass
class MockTransport:
    handler: Callable[[str], Response]


class AsyncClient:
    def __init__(self, *, base_url: str, transport: MockTransport) -> None:
        self._base_url = base_url
        self._transport = transport

    async def get(self, url: str) -> Response:
        return self._transport.handler(self._base_url + url)


class URL:
    def __init__(self, url: str) -> None:
        self.host = urlsplit(url).hostname


class ConnectError(Exception):
    pass


# -- aiohttp -------------------------------------------------------------------------------------


class ClientSession:
    pass


class ClientResponseError(Exception):
    status = 0


# -- SQLAlchemy ----------------------------------------------------------------------------------


class DBAPIError(Exception):
    connection_invalidated = False


class OperationalError(DBAPIError):
    pass


class PoolTimeoutError(Exception):
    pass


class Connection:
    def __init__(self) -> None:
        self._db = sqlite3.connect(":memory:")

    def execute(self, statement: str, values: dict[str, object]) -> Connection:
        self._rows = self._db.execute(statement, values)
        return self

    def scalar_one(self) -> Any:
        return self._rows.fetchone()[0]

    def close(self) -> None:
        self._db.close()


class Engine:
    @contextmanager
    def connect(self) -> Iterator[Connection]:
        connection = Connection()
        yield connection
        connection.close()


# -- FastAPI -------------------------------------------------------------------------------------

Endpoint = Callable[..., Awaitable[Any]]


class FastAPI:
    def get(self, path: str) -> Callable[[Endpoint], Endpoint]:
        return lambda endpoint: endpoint

    def exception_handler(self, error: type[Exception]) -> Callable[[Endpoint], Endpoint]:
        return lambda handler: handler


@dataclass
class JSONResponse:
    content: object
    status_code: int
    headers: dict[str, str]


NAMES: dict[str, dict[str, object]] = {
    "httpx": {
        each.__name__: each for each in (AsyncClient, ConnectError, MockTransport, Response, URL)
    },
    "aiohttp": {each.__name__: each for each in (ClientSession, ClientResponseError)},
    "sqlalchemy": {"create_engine": lambda url: Engine(), "text": str},
    "sqlalchemy.exc": {
        "DBAPIError": DBAPIError,
        "OperationalError": OperationalError,
        "TimeoutError": PoolTimeoutError,
    },
    "fastapi": {"FastAPI": FastAPI},
    "fastapi.responses": {"JSONResponse": JSONResponse},
}


def put_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is not installed be imported, for one test."""
    missing = {name.partition(".")[0] for name in NAMES}
    missing = {name for name in missing if importlib.util.find_spec(name) is None}
    for name, values in NAMES.items():
        if name.partition(".")[0] in missing:
            module = types.ModuleType(name)
            vars(module).update(values)
            monkeypatch.setitem(sys.modules, name, module)
