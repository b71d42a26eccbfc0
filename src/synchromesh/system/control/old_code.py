"""The code of another revision or folder: laid out, run in a process of its own, and asked."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import msgspec

from synchromesh.errors import ConfigError, SynchromeshError, readable
from synchromesh.saga.recorded import RecordedRun
from synchromesh.saga.replaying import Replayer
from synchromesh.saga.samples import sample_run
from synchromesh.system.config.definitions import load_services
from synchromesh.system.config.histories import read_histories
from synchromesh.system.config.reading import load_config
from synchromesh.system.config.schema import FILE_NAME

_WITHIN_S = 120.0


class OldAnswer(msgspec.Struct, frozen=True):
    """What the other code says.

    Attributes:
        error: why it cannot be asked; "" where it can.
        differs: in what it differs from each run that it was asked for; "" where it fits.
        samples: a sample run of each saga and version.
        newest: the version that it starts runs with, of each saga.
    """

    error: str = ""
    differs: list[str] = []
    samples: list[RecordedRun] = []
    newest: dict[str, int] = {}


class OldCode:
    """Code that was, in a folder.

    Attributes:
        named: what its user calls it.
    """

    def __init__(self, named: str, folder: Path) -> None:
        self.named = named
        self._folder = folder

    def histories(self, place: Path) -> dict[str, RecordedRun]:
        """Return the histories beside it. Raises ConfigError where one cannot be read."""
        return read_histories(self._folder / place)

    def ask(self, runs: Sequence[RecordedRun]) -> OldAnswer:
        """Replay runs with it, in another process; only its saga functions are run.

        Raises:
            ConfigError: it cannot be loaded.
        """
        with tempfile.TemporaryDirectory(prefix="synchromesh-") as name:
            asked, answered = Path(name) / "asked", Path(name) / "answered"
            asked.write_bytes(msgspec.json.encode(list(runs)))
            command = (
                sys.executable, "-P", "-m", __name__, str(self._folder), str(asked), str(answered),
            )  # fmt: skip
            try:
                ran = subprocess.run(  # noqa: S603 - it is this interpreter, and no shell
                    command,
                    cwd=self._folder,
                    env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    timeout=_WITHIN_S,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise ConfigError(
                    f"the code of {self.named} did not come to an end within {_WITHIN_S:g} s; it "
                    "does something when it is imported"
                ) from error
            if not answered.exists():
                last = ran.stderr.decode(errors="replace").strip().rpartition("\n")[2]
                self._refuse(f"it ended this Python with exit code {ran.returncode}: {last}")
            answer = msgspec.json.decode(answered.read_bytes(), type=OldAnswer)
        if answer.error:
            self._refuse(answer.error)
        return answer

    def _refuse(self, why: str) -> NoReturn:
        where = str(self._folder)
        raise ConfigError(
            f"the code of {self.named} cannot be loaded by this Python "
            f"{sys.version_info.major}.{sys.version_info.minor}: "
            f"{readable(why.replace(where, self.named))}"
        )

    def __repr__(self) -> str:
        return f"<OldCode {self.named}>"


@contextmanager
def old_code(folder: Path, against: str) -> Iterator[OldCode]:
    """Find the code of a folder, or that which this folder had at a revision of its repository.

    Of a revision the files below the folder are laid out in a temporary one; nothing is checked
    out.

    Raises:
        ConfigError: it is neither, or git cannot be run.
    """
    if "\0" in against or not against.strip():
        raise ConfigError(f"--against {against!r} is neither a folder nor a revision")
    if os.path.isfile(os.path.join(against, FILE_NAME)):
        yield OldCode(against, Path(against).resolve())
        return
    with tempfile.TemporaryDirectory(prefix="synchromesh-") as name:
        _lay_out(folder, against, Path(name).resolve())
        yield OldCode(against, Path(name).resolve())


def _lay_out(folder: Path, revision: str, target: Path) -> None:
    where = _git(
        folder, "rev-parse", "--show-toplevel", "--show-prefix",
        says=lambda told: (
            f"--against {revision!r}: there is no {FILE_NAME} in a folder of this name, and "
            f"{folder} is in no git repository that can be read ({told}); give the folder of the "
            "old code"
        ),
    ).decode()  # fmt: skip
    top, _, prefix = where.rstrip("\n").partition("\n")
    wanted = f"{revision}^0"  # the commit, whatever leads to it
    commit = _git(
        folder, "rev-parse", "--verify", "--quiet", "--end-of-options", wanted,
        says=lambda _: (
            f"--against {revision!r} is neither a folder with a {FILE_NAME} nor a revision of this "
            "repository; in CI, fetch it first: git fetch origin main"
        ),
    ).decode().strip()  # fmt: skip
    tree = f"{commit}:{prefix}" if prefix else commit
    packed_at = target / ".packed"
    packed_at.write_bytes(
        _git(
            Path(top), "archive", "--format=zip", tree,
            says=lambda told: (
                f"--against {revision!r}: this folder, {prefix or '.'}, cannot be read there "
                f"({told}); was it elsewhere then? Lay it out, and give that folder"
            ),
        )
    )  # fmt: skip
    # It writes below the folder alone, and no link: what was one is a file with its target.
    with zipfile.ZipFile(packed_at) as packed:
        packed.extractall(target)
    packed_at.unlink()
    if not (target / FILE_NAME).is_file():
        raise ConfigError(f"--against {revision!r}: this folder had no {FILE_NAME} then")


def _git(folder: Path, *arguments: str, says: Callable[[str], str]) -> bytes:
    """Run git and return what it prints. Raises ConfigError with what `says` makes of its error."""
    try:
        ran = subprocess.run(  # noqa: S603 - no shell: a revision is one argument, whatever is in it
            ("git", "-C", str(folder), *arguments),  # noqa: S607 - the user's own git
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**os.environ, "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"},
            timeout=_WITHIN_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise ConfigError(
            "git is not installed; install it, or give the folder of the old code to --against"
        ) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"git cannot be run: {error}") from error
    if ran.returncode != 0:
        told = ran.stderr.decode(errors="replace").strip().partition("\n")[0]
        raise ConfigError(says(readable(told.removeprefix("fatal: "))))
    return ran.stdout


def _answer(folder: Path, runs: Sequence[RecordedRun]) -> OldAnswer:
    """Answer for the code of a folder; it is this process's from then on."""
    services = load_services(load_config(folder), folder)
    replayers = {service.name: Replayer(service.sagas) for service in services}
    nobody = "there is no such service"
    samples = [
        found
        for service in services
        for definition in service.sagas
        if (found := sample_run(service.name, definition)) is not None
    ]
    newest = {
        f"{service.name}.{each.name}": max(one.version for one in service.sagas
                                           if one.name == each.name)
        for service in services
        for each in service.sagas
    }  # fmt: skip
    differs = [
        replayers[run.service].differs(run) if run.service in replayers else nobody for run in runs
    ]
    return OldAnswer(differs=differs, samples=samples, newest=newest)


def _main(folder: str, asked: str, answered: str) -> None:
    runs = msgspec.json.decode(Path(asked).read_bytes(), type=list[RecordedRun])
    try:
        answer = _answer(Path(folder), runs)
    except SynchromeshError as error:
        answer = OldAnswer(error=error.message)
    Path(answered).write_bytes(msgspec.json.encode(answer))


if __name__ == "__main__":
    _main(*sys.argv[1:])
