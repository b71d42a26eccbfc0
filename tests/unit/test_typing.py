"""The types of calls, services and sagas: mypy accepts what is right and refuses what is wrong."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
REFUSED = ROOT / "tests" / "typing" / "refused.py"


def test_the_repository_is_well_typed() -> None:
    """mypy --strict, as `make types` runs it, finds nothing in any file of Python."""
    command = [sys.executable, "-m", "mypy", "--no-pretty"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_exactly_the_marked_lines_are_refused() -> None:
    """mypy --strict refuses each marked line for its reason, and none beside; accepted.py is."""
    files = [str(REFUSED), str(REFUSED.with_name("accepted.py"))]
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--no-pretty",
        "--no-error-summary",
        *files,
    ]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = {
        (Path(name).name, int(line), code)
        for name, line, code in re.findall(
            r"^([^:\n]+):(\d+):.* error: .*\[([a-z-]+)\]$", checked.stdout, re.MULTILINE
        )
    }
    marked = {
        (REFUSED.name, number, mark[1])
        for number, line in enumerate(REFUSED.read_text().splitlines(), 1)
        if (mark := re.search(r"# refused: ([a-z-]+)$", line))
    }
    assert found == marked, checked.stdout + checked.stderr
    assert len(marked) >= 50


def test_an_example_is_typed_as_its_users_check_it(tmp_path: Path) -> None:
    """A copy of the example passes mypy --strict without the settings of this repository."""
    example = ROOT / "src" / "synchromesh" / "examples" / "servo_works"
    copy = shutil.copytree(
        example, tmp_path / "servo_works", ignore=shutil.ignore_patterns("__pycache__", ".*")
    )
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--explicit-package-bases",
        f"--cache-dir={tmp_path / 'cache'}",
        "contracts",
        "services",
        "shop.py",
        "test_servo_works.py",
    ]
    checked = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert checked.stdout.startswith("Success: no issues found"), checked.stdout + checked.stderr
