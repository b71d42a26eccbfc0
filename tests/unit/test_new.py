"""`synchromesh new`: whole folders or none, from the package's own data, and never written over."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli_runs import Run, runner
from synchromesh.errors import ConfigError
from synchromesh.system import load_config
from synchromesh.system.scaffold import minimal_files, new_system

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "src/synchromesh/examples/servo_works"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in a folder, in this process."""
    return runner(capsys)


def files_in(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def in_folder(folder: Path, *words: str) -> str:
    """Run a module in a folder; return what it printed, once it has passed."""
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_new_system_has_one_service(run: Run, tmp_path: Path) -> None:
    """Contract, service, test and configuration; the name is in them, and no placeholder is."""
    ran = run(tmp_path, "new", "my-shop")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[1:] == ["  cd my-shop", "  synchromesh dev"]
    made = files_in(tmp_path / "my-shop")
    assert made == minimal_files("my-shop")
    assert {"synchromesh.toml", "contracts/greeter.py", "services/greeter.py"} < made.keys()
    assert not any(b"{name}" in data for data in made.values())
    assert load_config(tmp_path / "my-shop").system.name == "my-shop"
    assert [path.name for path in tmp_path.iterdir()] == ["my-shop"]


def test_the_example_is_the_whole_of_servo_works(run: Run, tmp_path: Path) -> None:
    """Every shipped file, and nothing that running it left behind; only the name is its own."""
    ran = run(tmp_path, "new", "works", "--example", "--json")
    assert (ran.code, json.loads(ran.out)) == (0, {"folder": str(tmp_path / "works")})
    made = files_in(tmp_path / "works")
    left_behind = re.compile(r"__pycache__|\.synchromesh/|_cache/")
    shipped = {n: d for n, d in files_in(SHIPPED).items() if not left_behind.search(n)}
    ignored = made.pop(".gitignore")
    assert ignored == minimal_files("works")[".gitignore"]
    config = shipped.pop("synchromesh.toml").replace(b'name = "servo-works"', b'name = "works"')
    assert made.pop("synchromesh.toml") == config
    assert made == shipped
    assert load_config(tmp_path / "works").system.name == "works"
    assert {"data/catalogue.json", "services/orders/sagas.py"} < made.keys()


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    """A folder that was made for it is taken."""
    (tmp_path / "a").mkdir()
    assert new_system(tmp_path, "a") == tmp_path / "a"
    assert files_in(tmp_path / "a") == minimal_files("a")


@pytest.mark.parametrize("there", ["folder", "file", "link", "broken link"])
def test_nothing_is_written_over(run: Run, tmp_path: Path, there: str) -> None:
    """What has the name already is kept, and named."""
    place = tmp_path / "a"
    if there == "folder":
        place.mkdir()
        (place / "mine").write_text("mine")
    elif there == "file":
        place.write_text("mine")
    else:
        if there == "link":
            (tmp_path / "b").mkdir()
        place.symlink_to(tmp_path / "b")
    before = sorted(tmp_path.rglob("*"))
    ran = run(tmp_path, "new", "a")
    assert (ran.code, ran.out) == (2, "")
    assert f"{place} is there already, and not empty; choose another name" in ran.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_fills_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step is one rename, which a folder with something in it refuses."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").write_text("mine")
    monkeypatch.setattr("synchromesh.system.scaffold._is_empty_folder", lambda _: True)
    with pytest.raises(ConfigError, match="is there already"):
        new_system(tmp_path, "a")
    assert files_in(tmp_path) == {"a/mine": b"mine"}


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a", "a/b", "/a", "A", "1a", "a b", "é", "a\n", "-a", "a" * 64]
)
def test_a_bad_name_is_refused(tmp_path: Path, name: str) -> None:
    """A name is one folder's name, and leads nowhere else."""
    with pytest.raises(ConfigError, match="cannot name a system; use lower-case letters"):
        new_system(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(run: Run, tmp_path: Path) -> None:
    """Exit 2 with the place and the reason."""
    ran = run(tmp_path / "gone", "new", "a")
    assert (ran.code, ran.out) == (2, "")
    assert f"{tmp_path / 'gone' / 'a'} cannot be written: No such file or directory" in ran.err


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written before it was full is removed again."""
    written: list[Path] = []
    real = Path.write_bytes

    def fills(path: Path, data: bytes) -> int:
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", fills)
    with pytest.raises(ConfigError, match="cannot be written: No space left on device"):
        new_system(tmp_path, "a", is_example=True)
    assert len(written) == 2
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the midst of it, too."""

    def interrupted(path: Path, data: bytes) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        new_system(tmp_path, "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_example", [False, True], ids=["new", "--example"])
def test_pytest_runs_the_tests_of_a_new_system_too(tmp_path: Path, is_example: bool) -> None:
    """Written for the standard library, they pass where pytest collects them, without a warning."""
    folder = new_system(tmp_path, "fresh", is_example=is_example)
    # pytest-asyncio is here for a test of its own, and warns where a project does not set it up.
    told = in_folder(
        folder, "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio", "-W", "error"
    )
    assert f"{3 if is_example else 1} passed" in told
    assert ": all is right with " in in_folder(folder, "synchromesh.cli", "config", "check")


def test_a_new_system_is_typed(tmp_path: Path) -> None:
    """Its code and its test pass mypy --strict, as its user checks them."""
    folder = new_system(tmp_path, "fresh")
    told = in_folder(folder, "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), ".")
    assert "no issues found" in told


@pytest.mark.parametrize("is_there", [False, True], ids=["nothing", "not all"])
@pytest.mark.parametrize("words", [("a",), ("a", "--example")], ids=["new", "--example"])
def test_an_installation_that_is_not_whole_is_told(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    is_there: bool,
) -> None:
    """Files that the package lacks are no bug of it: exit 2, what is missing and what to do."""
    package = tmp_path / "synchromesh"
    if is_there:
        for below in ("system/template", "examples/servo_works"):
            (package / below).mkdir(parents=True)
            (package / below / "README.md").write_text("all that is left")
    monkeypatch.setattr("synchromesh.system.scaffold.files", lambda _: package)
    (tmp_path / "mine").mkdir()
    ran = run(tmp_path / "mine", "new", *words)
    assert (ran.code, ran.out) == (2, "")
    lacking = package / ("examples/servo_works" if "--example" in words else "system/template")
    assert f"{lacking}, a part of the installed synchromesh, cannot be read: " in ran.err
    assert ran.err.endswith("; install synchromesh again, or from another wheel\n")
    assert list((tmp_path / "mine").iterdir()) == []
