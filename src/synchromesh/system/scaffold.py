"""Scaffolds a new system: with one service, or with the whole example.

The files are data of the installed package. They are written beside their place and moved there
whole, so that a folder is there with all of its files or not at all.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from synchromesh.errors import ConfigError
from synchromesh.system.config.schema import FILE_NAME

EXAMPLE = "servo_works"
EXAMPLE_NAMED = b'name = "servo-works"'
TEMPLATE_SUFFIX = ".template"

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
# What running the shipped files where they are leaves beside them.
_LEFT_BEHIND = re.compile(r"__pycache__|\.synchromesh|\.\w+_cache|.*\.pyc")


def minimal_files(name: str) -> dict[str, bytes]:
    """Return the files of a system with one service, by path.

    Raises:
        ConfigError: the installed package lacks them.
    """
    return {
        path.removesuffix(TEMPLATE_SUFFIX): data.replace(b"{name}", name.encode())
        for path, data in _shipped("system/template", FILE_NAME + TEMPLATE_SUFFIX).items()
    }


def example_files(name: str) -> dict[str, bytes]:
    """Return the files of servo-works under a new name, by path.

    Raises:
        ConfigError: the installed package lacks them.
    """
    made = _shipped(f"examples/{EXAMPLE}", FILE_NAME)
    made[FILE_NAME] = made[FILE_NAME].replace(EXAMPLE_NAMED, f'name = "{name}"'.encode(), 1)
    made[".gitignore"] = minimal_files(name)[".gitignore"]
    return made


def new_system(parent: Path, name: str, *, is_example: bool = False) -> Path:
    """Create the folder `name` with the files of a system, and return it; it may exist if empty.

    Raises:
        ConfigError: the name is none, something is there already, it cannot be written, or the
            installed package lacks the files; then nothing is left behind.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot name a system; use lower-case letters, digits, - and _, and begin "
            "with a letter"
        )
    target = parent / name
    if os.path.lexists(target) and not _is_empty_folder(target):
        raise _taken(target)
    made = example_files(name) if is_example else minimal_files(name)
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=parent))
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        for path, data in made.items():
            file = temporary / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        # As private as the folder around it: mkdtemp's own mode is for this user alone.
        temporary.chmod(parent.stat().st_mode & 0o755)
        temporary.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise _taken(target) from error
        raise _unwritable(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _shipped(below: str, least: str) -> dict[str, bytes]:
    """Read a folder of the installed package; it must contain the file `least`."""
    folder = files("synchromesh").joinpath(*below.split("/"))
    try:
        found = {path: file.read_bytes() for path, file in _below(folder, "")}
    except OSError as error:
        raise _not_whole(folder, error.strerror or str(error)) from error
    if least not in found:
        raise _not_whole(folder, f"{least} is missing")
    return found


def _below(folder: Traversable, prefix: str) -> Iterator[tuple[str, Traversable]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if _LEFT_BEHIND.fullmatch(entry.name):
            continue
        if entry.is_dir():
            yield from _below(entry, f"{prefix}{entry.name}/")
        else:
            yield f"{prefix}{entry.name}", entry


def _is_empty_folder(path: Path) -> bool:
    try:
        return path.is_dir() and not path.is_symlink() and next(path.iterdir(), None) is None
    except OSError as error:
        raise _unwritable(path, error) from error


def _taken(target: Path) -> ConfigError:
    return ConfigError(f"{target} is there already, and not empty; choose another name")


def _not_whole(folder: Traversable, why: str) -> ConfigError:
    return ConfigError(
        f"{folder}, a part of the installed synchromesh, cannot be read: {why}; install "
        "synchromesh again, or from another wheel"
    )


def _unwritable(target: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{target} cannot be written: {error.strerror}; choose a folder that is yours, with room"
    )
