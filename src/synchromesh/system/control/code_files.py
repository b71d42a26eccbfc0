"""Which files of the folder each part runs, and which of them have changed since it started.

A process loads the definitions of all services, so what is loaded does not say whose a file is.
What a part runs is its own module, and what that imports below the folder, as far as `import`
statements say.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from synchromesh.system.config.schema import GATEWAY


class CodeFiles:
    """Compares the files of each part with what they were when it started.

    Args:
        apps: the places of each part's definitions, such as "services.orders:orders", by part.

    Attributes:
        last: what `changed` found last, by part, without the parts that have started since.
    """

    def __init__(self, folder: Path, apps: Mapping[str, list[str]]) -> None:
        self._folder = folder
        self._apps = apps
        self._digests: dict[str, dict[Path, str]] = {}
        self.last: dict[str, list[str]] = {}
        # By path: modification time, size, and the digest of then.
        self._seen: dict[Path, tuple[int, int, str]] = {}

    def started(self, part: str) -> None:
        """Note the files of a part as it starts."""
        if part in self._apps:
            files = files_of(self._apps[part], self._folder)
            self._digests[part] = {path: self._digest(path) for path in sorted(files)}
            self.last.pop(part, None)

    def changed(self) -> dict[str, list[str]]:
        """Return the files that have changed since their part started, by part; none is left out.

        One that was only touched has not changed.
        """
        found = {}
        for part, digests in self._digests.items():
            changed = [path for path, digest in digests.items() if self._digest(path) != digest]
            if changed:
                found[part] = [str(path.relative_to(self._folder)) for path in changed]
        self.last = dict(found)
        return found

    def _digest(self, path: Path) -> str:
        try:
            stat = path.stat()
            seen = self._seen.get(path)
            if seen is not None and seen[:2] == (stat.st_mtime_ns, stat.st_size):
                return seen[2]
            digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        except OSError:
            return ""
        self._seen[path] = stat.st_mtime_ns, stat.st_size, digest
        return digest

    def __repr__(self) -> str:
        return f"<CodeFiles of {', '.join(self._digests) or 'nothing yet'}>"


def how_to_take_up(changed: Mapping[str, list[str]]) -> str:
    """Return the commands that take up changed files, by the parts that run them.

    Those of the gateway alone are taken up while it runs; what services import, too, is not.

    Example:
        >>> how_to_take_up({"gateway": ["gateway.py"]})
        'synchromesh gateway reload, synchromesh dev --reload, or a new start'
    """
    parts = set(changed)
    others = {file for part in parts - {GATEWAY} for file in changed[part]}
    own = [file for file in changed.get(GATEWAY, ()) if file not in others]
    ways = []
    if own:
        ways.append("synchromesh gateway reload" + f" ({', '.join(own)})" * bool(others))
    if others:
        ways.append("synchromesh restart NAME (with --split)")
    return ", ".join([*ways, "synchromesh dev --reload, or a new start"])


def files_of(apps: list[str], folder: Path) -> set[Path]:
    """Return the files below a folder that modules are made of, with all that they import there."""
    found: set[Path] = set()
    waiting = [app.partition(":")[0] for app in apps]
    looked: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in looked:
            continue
        looked.add(name)
        path = _path_of(name, folder)
        # The packages that it is in are imported before it.
        if "." in name:
            waiting.append(name.rpartition(".")[0])
        if path is not None:
            found.add(path)
            waiting += _imports(path, name)
    return found


def _path_of(name: str, folder: Path) -> Path | None:
    place = folder.joinpath(*name.split("."))
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            return path
    return None


def _imports(path: Path, name: str) -> Iterator[str]:
    with suppress(OSError, SyntaxError, ValueError):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
                    parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                    base = ".".join([*parents, *([base] if base else [])])
                if base:
                    yield base
                    # What is imported may be a module of a package.
                    yield from (f"{base}.{alias.name}" for alias in node.names)
