"""The code of a gateway, imported anew beside what runs, and put back where it is not taken.

What is imported anew is the module that `[gateway] app` names, with the modules of the folder that
no service imports. What services import too, such as contracts, stays as it is loaded: another copy
of it would be other classes, which the running system knows nothing of. So a change there is no
matter of the gateway alone, and is refused here.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, ModuleType

from synchromesh.gateway import Gateway
from synchromesh.system.config.definitions import load_gateway
from synchromesh.system.config.schema import GATEWAY, SystemConfig
from synchromesh.system.control.code_files import CodeFiles, files_of


class GatewayCode:
    """Knows the files of a gateway as they were when it was loaded; make it right before that."""

    def __init__(self, config: SystemConfig, folder: Path) -> None:
        self._folder = folder
        self._app = config.gateway.app
        self._files = self._fresh = self._as_now()
        self._is_kept = False
        services = [section.app for section in config.services.values()]
        self._shared = {str(path.relative_to(folder)) for path in files_of(services, folder)}

    def changed(self) -> tuple[list[str], list[str]]:
        """Return the files that have changed since: its own, and those that services run too."""
        changed = self._files.changed().get(GATEWAY, [])
        return (
            [name for name in changed if name not in self._shared],
            [name for name in changed if name in self._shared],
        )

    @contextmanager
    def imported(self, config: SystemConfig) -> Iterator[Gateway]:
        """Give the definition as it is in the files now; afterwards what was loaded is back.

        Call `keep` within the context to leave it in its place. The import runs in this thread:
        nothing else does meanwhile.

        Raises:
            ConfigError: it cannot be imported, or is no gateway; the message says why.
        """
        # Before it is read: a change meanwhile is then seen as one.
        own, self._fresh = self._own_modules(config), self._as_now()
        before = {name: sys.modules.pop(name) for name in own if name in sys.modules}
        finder = _Finder(own)
        sys.meta_path.insert(0, finder)
        self._is_kept = False
        try:
            definition = load_gateway(config, self._folder)
            sys.meta_path.remove(finder)
            assert definition is not None, "a gateway that runs has an app"
            yield definition
        finally:
            if finder in sys.meta_path:
                sys.meta_path.remove(finder)
            if not self._is_kept:
                for name in own:
                    sys.modules.pop(name, None)
                _put_back(before)

    def keep(self) -> None:
        """Leave what was imported in its place: it is what runs from now on."""
        self._is_kept, self._files = True, self._fresh

    def _as_now(self) -> CodeFiles:
        files = CodeFiles(self._folder, {GATEWAY: [self._app]})
        files.started(GATEWAY)
        return files

    def _own_modules(self, config: SystemConfig) -> dict[str, Path]:
        """Return the files of the modules that are the gateway's alone, by module."""
        found = {}
        for path in files_of([config.gateway.app], self._folder):
            inner = path.relative_to(self._folder)
            if str(inner) not in self._shared:
                parts = inner.with_suffix("").parts
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        return found

    def __repr__(self) -> str:
        return f"<GatewayCode in {self._folder}>"


class _Finder(importlib.abc.MetaPathFinder):
    """Finds modules by their files, and reads those: what was compiled may be older than a second.

    CPython tells by the seconds and the size of a file whether what it has compiled is current.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files

    def find_spec(
        self, fullname: str, _: Sequence[str] | None, __: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return how a module of the gateway is loaded; None for any other."""
        path = self._files.get(fullname)
        if path is None:
            return None
        return importlib.util.spec_from_file_location(
            fullname,
            path,
            loader=_FreshLoader(fullname, str(path)),
            submodule_search_locations=[str(path.parent)] if path.stem == "__init__" else None,
        )


class _FreshLoader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _put_back(modules: Mapping[str, ModuleType]) -> None:
    sys.modules.update(modules)
    for name, module in modules.items():
        parent, _, last = name.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], last, module)
