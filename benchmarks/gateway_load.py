"""What is asked of a gateway, by wrk, and what it took."""

from __future__ import annotations

import json
import re
import ssl
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks import tools
from benchmarks.harness import Measures, WrongAnswer, check, cpu_s
from benchmarks.processes import Server, last_core

CONNECTIONS = 32
_UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


@dataclass(frozen=True, slots=True)
class Contestant:
    """What is asked: a URL that a process serves, and what it has to answer.

    Attributes:
        body: what is sent, as JSON; b"" is a GET.
        trusting: believes its certificate, where that is of our own.
        says: a header field that its answers have, by which they show that a policy is at work.
    """

    name: str
    url: str
    pid: int
    wanted: object
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    trusting: ssl.SSLContext | None = None
    says: str = ""

    @property
    def fields(self) -> dict[str, str]:
        """All header fields that are sent."""
        return {**self.headers, **({"Content-Type": "application/json"} if self.body else {})}

    def check(self) -> None:
        """Ask once and compare the answer.

        Raises:
            WrongAnswer: it is another one.
        """
        request = urllib.request.Request(self.url, self.body or None, headers=self.fields)
        with urllib.request.urlopen(request, timeout=10, context=self.trusting) as response:
            got: Any = json.load(response)
            if self.says and self.says not in response.headers:
                raise WrongAnswer(f"{self.name} answered without {self.says}")
        # A page of ours says of each branch how it went; the others' pages are the data alone.
        check(got.get("data", got), self.wanted, self.name)

    def round(self, seconds: int) -> Measures:
        """Load it, and return its CPU for a request, the requests a second, p50 and p99."""
        self.check()
        began_s = cpu_s(self.pid)
        loaded = load(self, seconds)
        took_s = cpu_s(self.pid) - began_s
        return {**loaded, "cpu_us": took_s * 1e6 / loaded["requests"]}


def rounds(contestants: Iterable[Contestant], seconds: int) -> dict[str, Callable[[], Measures]]:
    """Return the rounds of contestants by name, as `in_turn` takes them."""

    def round_of(contestant: Contestant) -> Callable[[], Measures]:
        return lambda: contestant.round(seconds)

    return {each.name: round_of(each) for each in contestants}


def load(contestant: Contestant, seconds: int) -> dict[str, float]:
    """Run wrk on the core of the upstream; every answer has to be a 2xx."""
    command = [tools.wrk(), "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency"]
    for name, value in contestant.fields.items():
        command += ["-H", f"{name}: {value}"]
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        if contestant.body:
            # JSON of text, numbers and names is a string of Lua's, too.
            script.write(f'wrk.method, wrk.body = "POST", {json.dumps(contestant.body.decode())}\n')
            script.flush()
            command += ["-s", script.name]
        with Server(
            "wrk",
            [*command, contestant.url],
            cores=last_core(),
            environment=tools.libraries(),
            stdout=subprocess.PIPE,
        ) as running:
            said = running.process.communicate(timeout=seconds + 20)[0].decode()
    return loaded_of(said, contestant.name)


def loaded_of(said: str, who: str) -> dict[str, float]:
    """Read what wrk printed.

    Raises:
        WrongAnswer: answers were no 2xx, or connections failed.
    """
    wrong = re.search(r"(Non-2xx.*|Socket errors:.*)", said)
    requests = re.search(r"(\d+) requests in ([\d.]+)(\w+)", said)
    if wrong or requests is None:
        raise WrongAnswer(f"{who}: {wrong[0] if wrong else said}")
    took_ms = float(requests[2]) * _UNITS_MS[requests[3]]
    latency = {
        f"p{percent}_ms": float(value) * _UNITS_MS[unit]
        for percent, value, unit in re.findall(r"(50|99)%\s+([\d.]+)(us|ms|s|m)\b", said)
    }
    return {
        "requests": float(requests[1]),
        "rps": float(requests[1]) / took_ms * 1000,
        **latency,
    }
