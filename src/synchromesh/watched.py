"""Files that are read again when they change."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

from synchromesh.errors import ConfigError

T = TypeVar("T")

# The inode, the size and the time of change of a file.
Stamp: TypeAlias = tuple[int, int, int]

_log = logging.getLogger("synchromesh.files")


class WatchedFile(Generic[T]):
    """Holds what a file says; a file that is missing or wrong later on changes nothing.

    Args:
        path: of the file.
        what: names it in the log.
        read: reads it; raises ConfigError where it is missing or wrong, as this does then too.

    Attributes:
        value: what the file said when it was last right.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "words")
        ...     _ = path.write_text("one")
        ...     words = WatchedFile(path, "the words", Path.read_text)
        ...     unchanged = words.reread()
        ...     _ = path.write_text("one two")
        ...     words.reread(), words.value, unchanged
        (True, 'one two', False)
    """

    def __init__(self, path: Path, what: str, read: Callable[[Path], T]) -> None:
        self._path, self._what, self._read = path, what, read
        # Before it is read: a change meanwhile is then seen as one.
        self._seen = stamp_of(path)
        self.value = read(path)

    def reread(self) -> bool:
        """Read the file again where it has changed; return whether it says something else now."""
        now = stamp_of(self._path)
        if now == self._seen:
            return False
        self._seen = now
        try:
            value = self._read(self._path)
        except ConfigError as error:
            _log.error("%s stay as they were: %s", self._what, error.message)
            return False
        if value == self.value:
            return False
        self.value = value
        _log.info("%s in %s have changed", self._what, self._path)
        return True


def stamp_of(path: Path) -> Stamp | None:
    """Return what tells one state of a file from another; None where there is no file.

    Whatever is in it: a file that is replaced is another one, and one that is written is newer.
    """
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
