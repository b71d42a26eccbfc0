"""The run directory: private to its user, whole or absent, and of one process at a time."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from synchromesh.errors import ConfigError
from synchromesh.runtime import RealDisk
from synchromesh.system import RunDir, RunInfo, SystemConfig
from synchromesh.system.config.schema import SystemSection
from synchromesh.system.supervise.messages import ProcessSpec

CONFIG = SystemConfig(SystemSection("shop"), {})
INFO = RunInfo(4711, "shop", "http://127.0.0.1:1", "token", {"a": "http://127.0.0.1:2"})


def made(folder: Path) -> RunDir:
    """Return a run directory that exists."""
    rundir = RunDir(folder)
    rundir.create()
    return rundir


def mode_of(path: Path) -> int:
    """Return the rights of a file."""
    return stat.S_IMODE(path.stat().st_mode)


def test_everything_is_private(tmp_path: Path) -> None:
    """Folders are 0700 and secrets 0600, also where a folder was wider before."""
    (tmp_path / ".synchromesh").mkdir(mode=0o755)
    rundir = made(tmp_path)
    rundir.key()
    rundir.publish(INFO)
    folders = {mode_of(path) for path in (rundir.path, rundir.data, rundir.telemetry)}
    files = {mode_of(path) for path in rundir.path.iterdir() if path.is_file()}
    assert (folders, files) == ({0o700}, {0o600})
    assert not list(rundir.path.glob("*.new"))


@pytest.mark.parametrize("carrier", [
    RunInfo(4711, "shop", "http://127.0.0.1:1", "SECRET", {}),
    ProcessSpec("shop", CONFIG, key="SECRET", control="http://127.0.0.1:1", token="SECRET"),
])  # fmt: skip
def test_what_carries_a_secret_does_not_show_it(carrier: object) -> None:
    """Neither the key nor the token is in a traceback or a log by chance (T3)."""
    assert "http://127.0.0.1:1" in repr(carrier)
    assert "SECRET" not in f"{carrier!r} {carrier}"


def test_the_key_stays_the_same(tmp_path: Path) -> None:
    """A restart signs with the key of the run before; another system has another."""
    rundir = made(tmp_path)
    key = rundir.key()
    assert len(key) == 32
    assert RunDir(tmp_path).key() == key
    other = tmp_path / "other"
    other.mkdir()
    assert made(other).key() != key


def test_what_runs_is_read_back_until_it_is_withdrawn(tmp_path: Path) -> None:
    """`run.json` says where a system is reached, and is gone when it does not run."""
    rundir = made(tmp_path)
    rundir.publish(INFO)
    assert RunDir(tmp_path).read() == INFO
    rundir.withdraw()
    rundir.withdraw()
    with pytest.raises(ConfigError, match=r"no system runs in .*start one there with"):
        rundir.read()


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """Neither a shared token nor a shared key is used; the message has the mend, not the secret."""
    rundir = made(tmp_path)
    rundir.publish(INFO)
    key = rundir.key()
    for path in (rundir.path / "run.json", rundir.path / "system.key"):
        path.chmod(0o640)
    with pytest.raises(ConfigError, match=r"chmod 600 .*run\.json") as read:
        rundir.read()
    with pytest.raises(ConfigError, match=r"chmod 600 .*system\.key") as keyed:
        rundir.key()
    assert INFO.token not in read.value.message
    assert key.hex() not in keyed.value.message


def test_what_is_damaged_is_named(tmp_path: Path) -> None:
    """A cut key and a cut `run.json` are refused with what to do."""
    rundir = made(tmp_path)
    rundir.publish(INFO)
    rundir.key()
    (rundir.path / "run.json").write_text('{"pid": ')
    (rundir.path / "system.key").write_bytes(b"short")
    with pytest.raises(ConfigError, match=r"run\.json cannot be read .*restart the system"):
        rundir.read()
    with pytest.raises(ConfigError, match="it has 5 bytes, not 32; remove it"):
        rundir.key()


def test_one_process_runs_a_folder(tmp_path: Path) -> None:
    """A second start is refused until the first has ended."""
    disk = RealDisk()
    rundir = made(tmp_path)
    lock = rundir.lock(disk)
    with pytest.raises(ConfigError, match="already run by this process; stop it first, or use it"):
        RunDir(tmp_path).lock(disk)
    lock.release()
    rundir.lock(disk).release()


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    """A run directory needs folders; what is no folder is left as it is."""
    (tmp_path / ".synchromesh").write_text("mine")
    with pytest.raises(ConfigError, match=r"is a file, .*move the file away"):
        made(tmp_path)
    assert (tmp_path / ".synchromesh").read_text() == "mine"


def test_a_full_or_read_only_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a key, nor a token, nor a lock is half written."""
    rundir = made(tmp_path)

    def no_room(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", no_room)
        with pytest.raises(ConfigError, match=r"system\.key cannot be written: No space left"):
            rundir.key()
        with pytest.raises(ConfigError, match=r"run\.json .*make room on the disk"):
            rundir.publish(INFO)
        patched.setattr("os.open", no_room)
        with pytest.raises(ConfigError, match=r"system\.lock cannot be written"):
            rundir.lock(RealDisk())
    assert not (rundir.path / "system.key").exists()
    with pytest.raises(ConfigError, match="no system runs"):
        rundir.read()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The run directory is made below a folder that exists."""
    with pytest.raises(ConfigError, match="cannot be used: No such file or directory"):
        made(tmp_path / "nowhere")


def test_run_json_is_readable_by_other_programs(tmp_path: Path) -> None:
    """It is one plain JSON object."""
    rundir = made(tmp_path)
    rundir.publish(INFO)
    plain = json.loads((rundir.path / "run.json").read_text())
    assert plain["services"] == {"a": "http://127.0.0.1:2"}
    assert sorted(plain) == [
        "admin", "admin_of", "control", "gateway", "gateways", "pid", "services", "system", "token",
    ]  # fmt: skip
    assert rundir.database("a").endswith("/.synchromesh/data/a.db")


def test_version_control_leaves_the_run_directory_out(tmp_path: Path) -> None:
    """The key that signs every hop is not committed by accident."""
    assert (made(tmp_path).path / ".gitignore").read_text() == "*\n"
