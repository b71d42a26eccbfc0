"""Pages that build a project: followed from an empty folder, block after block."""

from __future__ import annotations

import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from pages import ROOT, blocks_of, follow, is_as_shown, prepare, reading

DOCS = ROOT / "docs"


def test_the_first_two_services_are_built_as_the_page_says(tmp_path: Path) -> None:
    """Written, run, called, tested and broken, with what each command prints."""
    with reading(tmp_path) as reader:
        follow(reader, DOCS / "first-services.md")
    verbs = {line.split()[1] for line in reader.typed if line.startswith("synchromesh ")}
    assert verbs == {"dev", "call", "break", "trace", "status", "heal"}


@pytest.mark.parametrize(
    ("shown", "printed", "is_so"),
    [
        (["8", "..."], ["8", "", "trace"], True),
        (["8", "..."], ["8"], True),
        (["...", "b", "..."], ["a", "b"], True),
        (["..."], [], True),
        (["8"], ["8", "more"], False),
        (["8"], ["9"], False),
        (["...", "b"], ["a"], False),
        (["took 1.9 ms  ██"], ["took 20.1 ms ████"], True),
    ],
)
def test_a_page_is_held_to_what_is_printed(
    shown: list[str], printed: list[str], is_so: bool
) -> None:
    """Times, ids and ports may differ, and `...` is any lines; nothing else may."""
    assert is_as_shown(shown, printed) is is_so


def test_the_tests_of_the_testing_page_pass(tmp_path: Path) -> None:
    """They go on from the first two services, and all of them pass, power cuts and seeds too."""
    with reading(tmp_path) as reader:
        prepare(reader, DOCS / "first-services.md")
        (tmp_path / "test_shop.py").unlink()  # only this page's own are counted
        follow(reader, DOCS / "testing.md")
    assert reader.typed == ["python -m pytest -q"]


def test_somebody_elses_api_is_called_as_the_page_says(tmp_path: Path) -> None:
    """Declared, called, run with a stand-in, broken, and faked in a test."""
    with reading(tmp_path) as reader:
        follow(reader, DOCS / "external-apis.md")
    verbs = {line.split()[1] for line in reader.typed if line.startswith("synchromesh ")}
    assert verbs == {"dev", "call", "break", "heal"}


def test_a_system_is_called_from_outside_as_the_page_says(tmp_path: Path) -> None:
    """By a job and by a script, each within its scopes; a credential is taken back."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
    with reading(tmp_path) as reader:
        follow(reader, DOCS / "call-from-outside.md", **{"9100": port})
    assert reader.typed.count("python nightly.py") == 2


def test_a_service_is_taken_out_of_a_monolith_as_the_page_says(tmp_path: Path) -> None:
    """Passed on, copied, compared, switched and gone; the page begins with the shipped example."""
    page = DOCS / "strangler.md"
    first = next(block for block in blocks_of(page.read_text()) if block.title == "monolith.py")
    assert first.body == (ROOT / "src/synchromesh/examples/servo_monolith/monolith.py").read_text()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
    with reading(tmp_path) as reader:
        follow(reader, page, **{"8000": port})
    assert reader.typed.count("synchromesh dev") == 4
    # Who goes back sells nothing twice: what was reserved since is in the monolith again.
    subprocess.run([sys.executable, "copyback.py"], cwd=tmp_path / "shop", check=True, timeout=90.0)
    with sqlite3.connect(tmp_path / "shop/shop.db") as db:
        orders = db.execute("select order_id from reservation order by 1").fetchall()
    assert orders == [("A-1",), ("A-2",), ("A-3",), ("A-5",)]
