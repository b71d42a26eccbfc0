"""What is shipped: source archive to wheel to a stranger's environment, where the READMEs hold."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from processes import announced, until

ROOT = Path(__file__).parents[2]
WITHIN_S = 300.0
# What using the checkout leaves in it.
LEFT_BEHIND = re.compile(r"__pycache__|\.synchromesh|\.\w+_cache|.*\.pyc")
FOLDERS = ("src", "tests", "docs", "benchmarks", "scripts")
FILES = {
    ".gitignore", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "PKG-INFO", "README.md",
    "pyproject.toml", "uv.lock", "zensical.toml",
}  # fmt: skip
METADATA = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}


class Built:
    """The source archive, the wheel made from it, and the wheel made from the checkout."""

    def __init__(self, folder: Path) -> None:
        how = ("--no-build-isolation", "--python", sys.executable)
        uv("build", *how, "--out-dir", str(folder / "dist"))
        uv("build", *how, "--out-dir", str(folder / "direct"), "--wheel")
        (self.archive,) = (folder / "dist").glob("*.tar.gz")
        (self.wheel,) = (folder / "dist").glob("*.whl")
        (self.direct,) = (folder / "direct").glob("*.whl")


class Stranger:
    """Somebody who has the wheel and what it requires in an environment, and nothing else."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.folder = folder
        environment = folder / "environment"
        # The versions that are locked: `make sync` has put them into the cache.
        uv(
            "sync", "--frozen", "--no-default-groups", "--no-install-project",
            "--python", sys.executable, UV_PROJECT_ENVIRONMENT=str(environment),
        )  # fmt: skip
        into = ("--python", str(environment / "bin" / "python"))
        uv("pip", "install", *into, "--no-deps", "--no-index", str(wheel))
        uv("pip", "check", *into)
        self.variables = {
            "PATH": os.pathsep.join([str(environment / "bin"), "/usr/bin", "/bin"]),
            "HOME": str(folder),
            "TMPDIR": str(folder),
        }

    def type(self, line: str, *below: str) -> str:
        """Type a command in a folder, and return what it printed, once it has exited with 0."""
        done = subprocess.run(
            shlex.split(line),
            cwd=self.folder.joinpath(*below),
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            check=False,
        )
        told = done.stdout + done.stderr
        assert (done.returncode, "Traceback" in told) == (0, False), f"{line}\n{told}"
        return told

    def reads(self, name: str) -> dict[str, str]:
        """Type all that the README of a system names; return what each command printed."""
        text = (self.folder / name / "README.md").read_text()
        lines = re.findall(r"^\$ (.+)$", text, re.MULTILINE)
        starts = [line for line in lines if line.startswith("synchromesh dev")]
        verbs = [line for line in lines if line.startswith("synchromesh ") and line not in starts]
        others = [line for line in lines if line.startswith("python -m ")]
        assert sorted([*starts, *verbs, *others]) == sorted(lines)
        told: dict[str, str] = {}
        for start in starts:
            with subprocess.Popen(
                [*shlex.split(start), "--json"],
                cwd=self.folder / name,
                env=self.variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as system:
                try:
                    announced(system)
                    told |= {line: self.type(line, name) for line in verbs}
                    assert until(lambda: self.is_settled(name), WITHIN_S)
                    system.send_signal(signal.SIGINT)
                    assert system.wait(WITHIN_S) == 0
                finally:
                    system.kill()
        return told | {line: self.type(line, name) for line in others}

    def is_settled(self, name: str) -> bool:
        """Return True where no saga is under way and every message has been taken."""
        services: dict[str, Any] = json.loads(self.type("synchromesh status --json", name))
        return not any(
            each["sagas"].get("running", 0)
            or each["sagas"].get("compensating", 0)
            or any(each["behind"].values())
            for each in services["services"].values()
        )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build both, as whoever publishes does."""
    return Built(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def stranger(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Stranger:
    """Install the wheel that was made from the source archive."""
    return Stranger(tmp_path_factory.mktemp("stranger"), built.wheel)


def uv(*words: str, **variables: str) -> None:
    """Run uv with what its cache has, and only where that is not enough with the index."""
    found = shutil.which("uv", path=f"{ROOT / '.uv' / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert found is not None, "there is no uv; `make sync` sets it up"
    said = ""
    for how in (("--offline",), ()):
        done = subprocess.run(
            [found, *words, *how],
            cwd=ROOT,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            check=False,
        )
        if done.returncode == 0:
            return
        said += done.stderr
    raise AssertionError(f"uv {shlex.join(words)}: {said}")


def below(*folders: str) -> set[str]:
    """Return the files of the checkout below some folders, by their paths from its root."""
    return {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and not any(map(LEFT_BEHIND.fullmatch, path.relative_to(ROOT).parts))
    }


def contents(wheel: Path) -> dict[str, bytes]:
    """Return the files of a wheel."""
    with zipfile.ZipFile(wheel) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def test_the_source_archive_has_all_that_make_test_needs(built: Built) -> None:
    """Every file of the four folders where it stands in the checkout, and no other one."""
    with tarfile.open(built.archive) as opened:
        names = [member.name.partition("/")[2] for member in opened if not member.isdir()]
    assert len(names) == len(set(names))
    assert set(names) == below(*FOLDERS) | FILES


def test_the_wheel_has_the_package_and_nothing_else(built: Built) -> None:
    """Code, `py.typed`, templates, servo-works, the licence: no test, no page, no cache."""
    package = {name.removeprefix("src/") for name in below("src")}
    info = f"{'-'.join(built.wheel.name.split('-')[:2])}.dist-info"
    files = contents(built.wheel)
    assert files.keys() == package | {f"{info}/{name}" for name in METADATA}
    assert {
        "synchromesh/py.typed",
        "synchromesh/system/template/.gitignore.template",
        "synchromesh/examples/servo_works/synchromesh.toml",
        "synchromesh/examples/servo_works/data/orders.json",
    } <= package
    assert files[f"{info}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()


def test_the_checkout_makes_the_same_wheel(built: Built) -> None:
    """By way of the source archive or directly: the same files with the same bytes."""
    assert built.wheel.name == built.direct.name
    assert contents(built.wheel) == contents(built.direct)


def test_the_environment_is_a_strangers(stranger: Stranger) -> None:
    """It has the installed wheel, nothing of the checkout, and no tool for tests."""
    told = stranger.type(
        "python -c 'import json, sys, importlib.util as u, synchromesh; print(json.dumps("
        '[synchromesh.__file__, u.find_spec("pytest"), sys.path]))\''
    )
    file, runner, path = json.loads(told)
    assert Path(file).is_relative_to(stranger.folder / "environment")
    assert runner is None
    assert [each for each in path if Path(each).is_relative_to(ROOT)] == []


def test_a_strangers_new_system_does_as_its_readme_says(stranger: Stranger) -> None:
    """`new`, then every command of its README, with the wheel and what it requires alone."""
    stranger.type("synchromesh new x")
    told = stranger.reads("x")
    assert "Hello, Ada!" in told["synchromesh call greeter.greet name=Ada"]
    assert re.search(r"Ran 1 test in .*\n\nOK\n", told["python -m unittest"])


def test_a_strangers_servo_works_does_as_its_readme_says(stranger: Stranger) -> None:
    """`new --example`, then every command of its README: tests, audit, universes and demo too."""
    stranger.type("synchromesh new y --example")
    told = stranger.reads("y")
    assert re.search(r"Ran [1-9]\d* tests in .*\n\nOK\n", told["python -m unittest"])
    assert "everything adds up" in told["python -m audit .synchromesh/data"]
    assert "10 universes" in told["python -m simulation --count 10"]
    demo = told["python -m demo --orders 60"]
    assert "passed: nothing was lost and nothing is half done" in demo
    # The extra for tokens is not there, and nothing fails for want of it.
    assert "tokens are left out: they need the extra jwt" in demo
    assert "17 came with API keys, 0 with tokens" in demo
