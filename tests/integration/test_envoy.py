"""Envoy in front of the gateway: the same answers, files that follow, nothing secret in them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import ssl
import stat
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509

from certificates import Issued, issue
from envoy_conformance import CASES, ENVOY, GATEWAY, Case
from envoy_world import (
    ISSUER,
    PARTNER,
    WITHIN_S,
    Engines,
    Seen,
    Told,
    admin_says,
    ask,
    engines,
)
from notes_app import TESTS
from synchromesh.gateway import make_key
from synchromesh.runtime import RealRuntime
from synchromesh.system.config.gateway_keys import ApiKeysFile
from synchromesh.system.config.rundir import RunDir

pytestmark = pytest.mark.anyio


async def test_both_engines_answer_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each case of the list, by the gateway alone and behind Envoy; who answers is counted."""
    monkeypatch.syspath_prepend(tmp_path)
    async with engines(tmp_path) as both:
        words = {**tokens(both), **keys(tmp_path), "port": str(both.legacy.port)}
        wrong: list[str] = []
        for name, case in CASES.items():
            for engine in (GATEWAY, ENVOY):
                expected = replace(case, **case.behind) if engine == ENVOY else case
                wrong += [
                    f"{name}, {engine}: {each}"
                    for each in await differences(both, engine, expected, words)
                ]
        assert wrong == [], "\n".join(wrong)


async def test_what_moves_and_what_is_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An Envoy that runs follows instances and its certificate, and speaks TLS to both sides."""
    monkeypatch.syspath_prepend(tmp_path)
    authority = issue(tmp_path, "authority")
    own = issue(tmp_path, "own", by=authority)
    first = own.key.read_text()
    believing = ssl.create_default_context(cafile=authority.pem)
    async with engines(tmp_path, own) as both:
        port, files = both.ports[ENVOY], folder_of(both)

        async def asked(head: str) -> Told:
            return await ask(port, f"{head} HTTP/1.1", secured=believing)

        assert (await asked("GET /app/x")).status == 200
        assert [seen.target for seen in both.legacy.seen] == ["/x"]
        told = await asked(
            f"GET /app/lead?location=https%3A%2F%2F127.0.0.1%3A{both.legacy.port}%2Fx"
        )
        assert told.all("location") == ["/app/x"]
        # A child of the system that comes back at another port, and a verb that follows it.
        async with following(both, port, own) as printed:
            assert printed["configuration"] == str(files / "envoy.json")
            first_port = (await asked_until(asked, "GET /child/x")).body
            await both.system._host.restart("child")
            async with asyncio.timeout(WITHIN_S):
                while (
                    told := await asked("GET /child/x")
                ).status != 200 or told.body == first_port:
                    pass
        # Another certificate, whose key came first.
        serial = issue(tmp_path, "own", by=authority).certificate.serial_number
        served = 0
        async with asyncio.timeout(WITHIN_S):
            while served != serial:
                served = await serial_of(port, believing)
        assert (await asked("GET /app/x")).status == 200
        holds_no_secret(files, [first, (tmp_path / "own.key").read_text()])


async def asked_until(asked: Callable[[str], Awaitable[Told]], head: str) -> Told:
    """Ask until it is answered 200."""
    async with asyncio.timeout(WITHIN_S):
        while (told := await asked(head)).status != 200:
            pass
    return told


@asynccontextmanager
async def following(both: Engines, port: int, own: Issued) -> AsyncIterator[dict[str, Any]]:
    """Run the verb that keeps the files, until it is interrupted; give what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "synchromesh.cli", "--folder", str(both.folder), "export", "envoy",
        str(folder_of(both)), "--listen", f"127.0.0.1:{port}", "--certificate", str(own.pem),
        "--key", str(own.key), "--json", "--follow", stdout=PIPE, stderr=PIPE,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(WITHIN_S):
            printed = await process.stdout.readuntil(b"\n}\n")
            # It says so once the files are as the system has it.
            while b"child" not in await process.stderr.readline():
                assert process.returncode is None
        yield msgspec.json.decode(printed)
    finally:
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(WITHIN_S):
            code = await process.wait()
    assert (code, await process.stdout.read()) == (0, b"")


async def serial_of(port: int, believing: ssl.SSLContext) -> int:
    """Return the number of the certificate that is served."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=believing)
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return int(x509.load_der_x509_certificate(shown).serial_number)


def folder_of(both: Engines) -> Path:
    return both.folder / "envoy"


def holds_no_secret(files: Path, secrets: list[str]) -> None:
    """Every file that was written is private, and has no line of a secret in it."""
    written = [path for path in files.rglob("*") if path.is_file() and path.suffix == ".json"]
    assert {path.name for path in written} >= {"envoy.json", "report.json", "legacy.json"}
    for path in written:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        text = path.read_text()
        for secret in secrets:
            assert not [line for line in secret.split("\n") if len(line) > 40 and line in text]


async def differences(both: Engines, engine: str, case: Case, words: dict[str, str]) -> list[str]:
    """Ask, and return what is not as the case says."""
    words = {**words, "engine": engine}
    before, asked = await requests(both), len(both.legacy.seen)
    body = filled(case.body.decode("latin-1"), words).encode("latin-1")
    words["length"] = str(len(body))
    told = await ask(both.ports[engine], filled(case.head, words), body, source=case.source)
    seen = both.legacy.seen[asked:]
    found = [*answer_wrong(case, told, words), *upstream_wrong(case, seen, words)]
    if engine == ENVOY and case.by:
        went = await requests(both) - before
        if (went > 0) != (case.by == GATEWAY):
            found.append(f"{went} requests went on to the gateway")
    return found


def answer_wrong(case: Case, told: Told, words: dict[str, str]) -> Iterator[str]:
    if told.status != case.status:
        yield f"status {told.status}, not {case.status}: {told.body[:200]!r}"
        return
    for name, value in case.headers.items():
        values = told.all(name)
        if value is None:
            wanted = values == []
        elif isinstance(value, re.Pattern):
            wanted = len(values) == 1 and value.fullmatch(values[0]) is not None
        else:
            wanted = values == [filled(str(value), words)]
        if not wanted:
            yield f"{name} is {values}, not {value!r}"
    if case.text is not None and told.body != filled(case.text.decode(), words).encode():
        yield f"the body is {told.body[:200]!r}"
    if case.problem:
        problem = msgspec.json.decode(told.body)
        for name, value in case.problem.items():
            if problem.get(name) != value:
                yield f"{name} of the problem is {problem.get(name)!r}, not {value!r}"
        traces = told.all("synchromesh-trace")
        if traces and problem.get("trace_id") != traces[0]:
            yield f"the problem's trace is {problem.get('trace_id')}, not {traces[0]}"


def upstream_wrong(case: Case, seen: list[Seen], words: dict[str, str]) -> Iterator[str]:
    wanted = [filled(case.upstream, words)] * case.times if case.upstream else []
    got = [f"{each.method} {each.target}" for each in seen]
    if got != wanted:
        yield f"the upstream got {got}, not {wanted}"
        return
    for each in seen:
        for name, value in case.passed.items():
            if each.get(name) != (None if value is None else filled(value, words)):
                yield f"the upstream got {name}: {each.get(name)}, not {value}"
        trace = each.get("traceparent") or ""
        if len(trace) != 55:
            yield f"the upstream got the trace {trace!r}"


def filled(text: str, words: dict[str, str]) -> str:
    """Put words in for their names in braces."""
    for name, value in words.items():
        text = text.replace(f"{{{name}}}", value)
    return text


async def requests(both: Engines) -> int:
    """Return how many requests Envoy has sent on to the gateway."""
    told = await admin_says(both.admin, "/stats?filter=^cluster.gateway.upstream_rq_total$")
    return int(told.rpartition(" ")[2])


def tokens(both: Engines) -> dict[str, str]:
    """Return tokens by what is wrong with them."""
    now, good = int(time.time()), both.token()
    head, claims, signature = good.split(".")
    unsigned = "eyJhbGciOiJub25lIn0"
    named: dict[str, Any] = {f"{PARTNER}/user": "ada"}
    wrongly: dict[str, Any] = {f"{PARTNER}/user": 7}
    in_steps: dict[str, Any] = {"https://id": {"partner": {"example/user": "ada"}}}
    return {
        "token": good,
        "bob": both.token(sub="bob"),
        "listed": both.token(scope=["a:read", "b"]),
        "several": both.token(aud=["web", "api"]),
        "just": both.token(exp=now - 1),
        "nearly": both.token(aud="https://api/"),
        "expired": both.token(exp=now - 3600),
        "endless": both.token(exp=None),
        "early": both.token(nbf=now + 3600),
        "others": both.token(aud="web"),
        "foreign": both.token(iss=f"{ISSUER}/"),
        "logout": both.token({"typ": "logout+jwt"}),
        "bringing": both.token({"jwk": both.legacy.key.as_dict(private=False)}),
        "unsigned": f"{unsigned}.{claims}.",
        "forged": f"{head}.{claims[:-2]}AA.{signature}",
        "nameless": both.token(sub=None),
        "narrow": both.token(scope="b"),
        "alike": both.token(scope="a:read2"),
        "partners": both.token(iss=PARTNER, sub=None, **named),
        "steps": both.token(iss=PARTNER, sub=None, **in_steps),
        "both": both.token(iss=PARTNER, sub=None, **in_steps, **wrongly),
    }


def keys(folder: Path) -> dict[str, str]:
    """Make an API key that is valid, and one that is not."""
    runtime = RealRuntime()
    text, made = make_key("shop", {"a:read"}, rng=runtime.secret_rng)
    ApiKeysFile(RunDir(folder).path / "api-keys.json", runtime.disk).add(made)
    wrong, _ = make_key("shop", {"a:read"}, rng=runtime.secret_rng)
    return {"key": text, "wrong": wrong}
