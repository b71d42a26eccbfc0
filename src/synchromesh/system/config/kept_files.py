"""Files beside the code that a release writes and a later one reads, each with its format."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from synchromesh.errors import ConfigError

T = TypeVar("T")

SUFFIX = ".json"


class _Form(msgspec.Struct, frozen=True):
    format: int


def read_kept(path: Path, kind: type[T], *, newest: int, what: str) -> T:
    """Read a file; `what` says in an error what it ought to be.

    Raises:
        ConfigError: it is none of ours, damaged, or of a newer release than reads `newest`.
    """
    try:
        data = path.read_bytes()
        # A newer format may have other fields: it is told from a damaged file first.
        form = msgspec.json.decode(data, type=_Form).format
        if form > newest:
            raise ConfigError(
                f"{path} has format {form}, and this release reads up to {newest}; upgrade "
                "Synchromesh"
            )
        return msgspec.json.decode(data, type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is no {what} ({error}); take it from version control, or move it away"
        ) from error


def write_kept(path: Path, data: bytes) -> None:
    """Replace a file of JSON atomically, with lines that a review and version control compare.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_suffix(".new")
    try:
        temporary.write_bytes(msgspec.json.format(data, indent=1) + b"\n")
        os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
