"""Which URLs of servers `[engine]` takes; what is refused is refused before anybody is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from synchromesh.errors import ConfigError
from synchromesh.system.config.engine_section import EngineSection

SECRET = "9hunter2"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://db", "postgres://admin@db:5432", f"postgresql://admin:{SECRET}@db:65535/shop",
        "postgresql:///?host=/run/postgresql", "postgresql://[::1]:5432/shop?sslmode=require",
        "postgresql://admin:a%40b%2Fc@one:5432,two:5433/shop",
    ],
)  # fmt: skip
def test_urls_of_servers(tmp_path: Path, url: str) -> None:
    """One host or several, a socket, a password with odd characters that are encoded."""
    assert EngineSection("env:URL").url("postgres", tmp_path, {"URL": url}) == url


@pytest.mark.parametrize("engine", ["postgres", "nats"])
@pytest.mark.parametrize(
    "rest",
    [
        f"admin:{SECRET}@db:99999", f"admin:{SECRET}@db:0", f"admin:{SECRET}@db:abc",
        f"admin:{SECRET}@one:1,two:70000", f"admin:{SECRET}@[::1]:65536", "db:" + "9" * 5000,
        f"admin:{SECRET}/x@db:5432", f"admin:12/{SECRET}@db", f"admin:12?{SECRET}@db",
        f"admin:12#{SECRET}@db", f"admin:{SECRET}@db#x", f"{SECRET}@[::1",
    ],
)  # fmt: skip
def test_what_is_no_url_is_refused_without_being_shown(
    tmp_path: Path, engine: str, rest: str
) -> None:
    """A port that is none, and a password that would be read as a path: neither comes to a driver,
    whose errors would show it."""
    url = f"{'postgresql' if engine == 'postgres' else engine}://{rest}"
    with pytest.raises(ConfigError, match=r"is no URL of a server; write .*percent-encode") as told:
        EngineSection("env:URL", "env:URL").url(engine, tmp_path, {"URL": url})
    assert SECRET not in str(told.value)
    assert "99999" not in str(told.value)
