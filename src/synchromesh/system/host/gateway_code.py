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
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import CodeType, ModuleType, coroutine
from typing import Any, Final, TypeVar

from synchromesh.errors import ConfigError
from synchromesh.gateway import Gateway
from synchromesh.system.config.definitions import load_gateway
from synchromesh.system.config.schema import GATEWAY, SystemConfig
from synchromesh.system.control.code_files import CodeFiles, files_of

T = TypeVar("T")

_NONE: Final = object()


class GatewayCode:
    """Knows the files of a gateway as they were when it was loaded; make it right before that."""

    def __init__(self, config: SystemConfig, folder: Path) -> None:
        self._folder = folder
        self._app = config.gateway.app
        self._files = self._as_now()
        services = [section.app for section in config.services.values()]
        self._shared = {str(path.relative_to(folder)) for path in files_of(services, folder)}

    def changed(self) -> tuple[list[str], list[str]]:
        """Return the files that have changed since: its own, and those that services run too."""
        changed = self._files.changed().get(GATEWAY, [])
        return (
            [name for name in changed if name not in self._shared],
            [name for name in changed if name in self._shared],
        )

    def imported(self, config: SystemConfig) -> ImportedGateway:
        """Return the definition as it is in the files now; what was loaded is back afterwards.

        The import runs in this thread: nothing else does meanwhile.

        Raises:
            ConfigError: it cannot be imported, or is no gateway; the message says why.
        """
        # Before it is read: a change meanwhile is then seen as one.
        own, files = self._own_modules(config), self._as_now()
        before = _Modules(own)
        for name in own:
            sys.modules.pop(name, None)
        finder = _Finder(own)
        sys.meta_path.insert(0, finder)
        try:
            definition = load_gateway(config, self._folder)
            assert definition is not None, "a gateway that runs has an app"
            return ImportedGateway(definition, files, before, _Modules(own))
        except KeyboardInterrupt as error:
            # Signals end a process that runs in another way: it is the code that raised this.
            raise ConfigError(
                f"[gateway] app = {config.gateway.app!r}: importing it failed: KeyboardInterrupt"
            ) from error
        finally:
            sys.meta_path.remove(finder)
            before.put()

    def keep(self, imported: ImportedGateway) -> None:
        """Leave what was imported in its place: it is what runs from now on."""
        self._files = imported.files
        imported.keep()

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


class ImportedGateway:
    """Is the code of a gateway as it was imported anew, and not yet what runs.

    Attributes:
        definition: what it defines.
        files: what it was read from.
    """

    def __init__(
        self, definition: Gateway, files: CodeFiles, before: _Modules, fresh: _Modules
    ) -> None:
        self.definition = definition
        self.files = files
        self._before = before
        self._fresh = fresh

    @coroutine
    def run(self, work: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        """Await what reads the definition.

        Its modules are in place whenever that runs, as annotations are looked up in them by name;
        whenever it waits, those of the running system are back.
        """
        step: Callable[[], Any] = partial(work.send, None)
        while True:
            self._fresh.put()
            try:
                waited = step()
            except StopIteration as ended:
                result: T = ended.value
                return result
            finally:
                self._before.put()
            try:
                step = partial(work.send, (yield waited))
            except BaseException as error:  # noqa: BLE001  it is the work's to answer
                step = partial(work.throw, error)

    def keep(self) -> None:
        """Leave its modules in their place."""
        self._before = self._fresh
        self._before.put()

    def __repr__(self) -> str:
        return f"<ImportedGateway {self.definition!r}>"


class _Modules:
    """Is what some names are imported as: the modules, and the attributes of their packages."""

    def __init__(self, names: Iterable[str]) -> None:
        self._modules = {name: sys.modules.get(name) for name in names}
        self._attributes: list[tuple[ModuleType, str, object]] = []
        for name in self._modules:
            parent, _, last = name.rpartition(".")
            package = sys.modules.get(parent)
            if package is not None:
                self._attributes.append((package, last, vars(package).get(last, _NONE)))

    def put(self) -> None:
        """Have them imported as this from now on."""
        for name, module in self._modules.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module
        for package, last, value in self._attributes:
            if value is not _NONE:
                setattr(package, last, value)
            elif last in vars(package):
                delattr(package, last)


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
