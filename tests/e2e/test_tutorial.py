"""The tutorial, typed as it stands: against a real process, which is killed where it says so."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from processes import announced

ROOT = Path(__file__).parents[2]
SYNCHROMESH = str(Path(sys.executable).with_name("synchromesh"))
STOP_S = 10.0
COMMAND_S = 90.0
# The tutorial says of these that they are refused.
REFUSED = ("qty=3", "customer=brassworks")


class Terminal:
    """A folder with servo-works in it, where commands are typed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dev: subprocess.Popen[str] | None = None
        self.urls: dict[str, str] = {}
        self.gateway = ""

    def start(self, line: str = "synchromesh dev") -> None:
        """Start the system, and return when it says that it runs."""
        self.dev = subprocess.Popen(
            [SYNCHROMESH, *line.split()[1:], "--json"],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            text=True,
        )
        told = announced(self.dev)
        self.urls, self.gateway = told["services"], told["gateway"]

    def stop(self, number: signal.Signals) -> int:
        """Send a signal, and return the exit code of the system."""
        assert self.dev is not None
        self.dev.send_signal(number)
        try:
            return self.dev.wait(STOP_S)
        finally:
            self.dev.kill()
            self.dev.communicate()
            self.dev = None

    def type(self, line: str) -> tuple[int, str]:
        """Type one command, and return its exit code and what it printed."""
        words = shlex.split(line)
        done = subprocess.run(
            [SYNCHROMESH, *words[1:]],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout + done.stderr

    def until(self, word: str, line: str) -> tuple[int, str]:
        """Type a command until it prints a word, at most 60 times; return what it printed last."""
        code, out = self.type(line)
        for _ in range(59):
            if word in out:
                break
            code, out = self.type(line)
        return code, out

    def well(self, ask: Callable[[str], tuple[int, str]], line: str) -> tuple[int, str]:
        """Ask for the status until nothing needs a person, at most 20 times; return the last.

        Where a slow disk makes a loop fail, that is a finding until the loop has come back.
        """
        code, out = ask(line)
        for _ in range(19):
            if code == 0:
                break
            code, out = ask(line)
        return code, out

    def completes(self, line: str) -> bool:
        """Type a command until the saga that it shows has completed; False where it does not."""
        return "completed" in self.until("completed", line)[1]

    def watch(self, line: str) -> tuple[int, str]:
        """Watch the status until a screen is there, then Ctrl-C; return exit code and screens."""
        ours, theirs = pty.openpty()
        watching = subprocess.Popen(
            [SYNCHROMESH, *line.split()[1:]], cwd=self.folder, stdout=theirs, stderr=theirs
        )
        try:
            os.close(theirs)
            seen = b""
            while b"servo-works" not in seen:
                seen += os.read(ours, 65_536)
            watching.send_signal(signal.SIGINT)
            # A terminal takes a few kilobytes: who writes to one that nobody reads waits for ever.
            with contextlib.suppress(OSError):
                while select.select([ours], [], [], COMMAND_S)[0] and (
                    last := os.read(ours, 65_536)
                ):
                    seen += last
            return watching.wait(COMMAND_S), seen.decode()
        finally:
            watching.kill()
            watching.wait()
            os.close(ours)

    def kill(self, line: str, service: str) -> None:
        """Do what the tutorial does with kill, to the process that the status names."""
        assert line == "kill -9 PID"
        code, out = self.type("synchromesh status --json")
        assert code == 0, out
        os.kill(json.loads(out)["services"][service]["pid"], signal.SIGKILL)

    def page(self, line: str, key: str) -> tuple[int, dict[str, str]]:
        """Do what the tutorial does with curl: ask the gateway; return status and headers."""
        path = line.partition(":PORT")[2]
        asked = urllib.request.Request(self.gateway + path, headers={"X-Api-Key": key})
        try:
            with urllib.request.urlopen(asked, timeout=COMMAND_S) as answer:
                return answer.status, dict(answer.headers)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers)

    def switch(self, line: str) -> None:
        """Do what the tutorial does with curl: turn the credit provider's fault switch."""
        body = re.findall(r"'({.*?})'", line)[0]
        url = f"{self.urls['credit_provider']}/_faults"
        with urllib.request.urlopen(url, body.encode(), timeout=COMMAND_S) as answer:
            assert answer.status == 200


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """Give a terminal in a folder of its own, and leave no process behind."""
    terminal = Terminal(tmp_path)
    for line in section("Start it"):
        if line.startswith("synchromesh new"):
            assert terminal.type(line)[0] == 0
    terminal.folder = tmp_path / "servo-works"
    yield terminal
    if terminal.dev is not None:
        terminal.stop(signal.SIGKILL)


def section(title: str) -> list[str]:
    """Return the commands of one section of the tutorial."""
    text = (ROOT / "docs/tutorial.md").read_text()
    body = text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\$ (.+)$", body, re.MULTILINE)


def test_the_tutorial_goes_as_it_says(terminal: Terminal) -> None:
    """Placed, refused, undone, broken, healed, killed, recovered: each does as its text says."""
    terminal.start()
    printed: dict[str, str] = {}
    outputs: list[str] = []
    for title in ("Place an order", "See one undone", "Break it", "See it degrade", "Kill it"):
        for line in section(title):
            if line.startswith("curl"):
                terminal.switch(line)
                continue
            if line == "synchromesh status --watch":
                code, out = terminal.well(terminal.watch, line)
                assert code == 0, out
                continue
            if line == "synchromesh saga show A-4":
                assert terminal.stop(signal.SIGKILL) == -signal.SIGKILL
                terminal.start()
            is_status = line == "synchromesh status"
            code, out = terminal.well(terminal.type, line) if is_status else terminal.type(line)
            if title == "Break it" and line == "synchromesh trace last":
                # The saga asks again at growing intervals: it takes a while until one is refused.
                code, out = terminal.until("circuit_open", line)
            if title == "Place an order" and line.startswith("synchromesh call orders.place"):
                # On a slow machine it is only accepted within the second that its handler waits.
                out += terminal.until('"type": "placed"', line)[1]
            assert code == (1 if any(word in line for word in REFUSED) else 0), (line, out)
            printed[f"{title}: {line}"] = out
            outputs.append(out)
            if line.startswith("synchromesh saga show A-"):
                assert terminal.completes(line), terminal.type(line)

    placed = printed["Place an order: synchromesh call orders.place order_id=A-1 sku=SX90 qty=2"]
    assert '"type": "placed"' in placed
    assert "handle inventory.reserve" in placed
    undone = printed["See one undone: synchromesh saga show last"]
    assert re.search(r"turned.*undone +inventory\.reserve#1", undone, re.DOTALL)
    assert '"held": 2' in printed["See one undone: synchromesh call inventory.stock sku=SX90"]
    broken = "Break it: synchromesh call orders.place order_id=A-3 sku=SX90 qty=1"
    assert '"type": "accepted"' in printed[broken]
    status = printed["Break it: synchromesh status"]
    assert re.search(r"^orders .* running 1", status, re.MULTILINE)
    assert re.search(r"^billing:credit_provider +100% errors +until healed", status, re.MULTILINE)
    assert "billing -> credit_provider" in status
    assert "circuit_open" in printed["Break it: synchromesh trace last"]
    assert printed["Break it: synchromesh heal"] == "healed: billing:credit_provider\n"
    assert printed["Break it: synchromesh heal inventory"] == "healed: inventory\n"
    whole, degraded = (out for out in outputs if '"motor"' in out)
    assert '"is_fallback": false' in whole
    assert '"is_fallback": true' in degraded
    machine = "See it degrade: synchromesh call fleet.machine machine_id=SX150-40078"
    assert '"state": "hot"' in printed[machine]
    killed = "Kill it: synchromesh call orders.place order_id=A-4 sku=SX90 qty=1"
    assert '"type": "accepted"' in printed[killed]
    assert terminal.stop(signal.SIGINT) == 0


def test_the_gateway_is_as_it_says(terminal: Terminal) -> None:
    """Checked, explained, opened by a new key, and marked where the page is not whole."""
    terminal.start()
    check, explain, add, keys, page = section("Come in from outside")
    assert terminal.type(check)[0] == 0
    code, out = terminal.type(explain)
    assert (code, "GET /machines/{machine_id}" in out, "  2. order" in out) == (0, True, True)
    code, out = terminal.type(add)
    assert code == 0
    key = out.splitlines()[0]
    code, out = terminal.type(keys)
    assert (code, "fleet:read" in out, key in out) == (0, True, False)
    assert terminal.page(page, "sm_nobody")[0] == 401
    # The gateway looks for new keys every second; a command takes its time meanwhile.
    for _ in range(60):
        status, headers = terminal.page(page, key)
        if status != 401:
            break
        terminal.type(keys)
    assert (status, headers["synchromesh-partial"]) == (200, "order")
    assert terminal.stop(signal.SIGINT) == 0


def test_a_process_each_is_as_it_says(terminal: Terminal) -> None:
    """The order waits for the next process of the one that was killed, which is then replaced."""
    split, status, kill, order, saga, trace, restart, again = section(
        "Give each service its process"
    )
    terminal.start(split)
    before = pids_in(terminal.type(status))
    terminal.kill(kill, "inventory")
    assert terminal.type(order)[0] == 0
    assert terminal.completes(saga), terminal.type(saga)
    code, out = terminal.type(f"{trace} --json")
    spans = json.loads(out)["spans"]
    assert {span["service"] for span in spans} >= {"control", "orders", "inventory", "billing"}
    code, out = terminal.type(restart)
    assert code == 0, out
    after = pids_in(terminal.type(again))
    assert f"in process {after['inventory']}" in out
    assert before.keys() == after.keys() >= {"orders", "inventory", "gateway"}
    assert {name for name in before if before[name] != after[name]} == {"inventory"}
    assert terminal.stop(signal.SIGINT) == 0


def pids_in(shown: tuple[int, str]) -> dict[str, int]:
    """Return the processes that a status shows, by their service."""
    code, out = shown
    assert code == 0, out
    return {
        name: int(pid) for name, pid in re.findall(r"^(\w+) +(\d+) +healthy", out, re.MULTILINE)
    }
