"""Names of a package that are loaded when they are first asked for (PEP 562).

A process keeps what it has imported, and a forked one gets it copied as it is touched. So a package
whose parts are seldom needed together names them in its `__init__`, and imports none:

    if TYPE_CHECKING:
        from synchromesh.gateway.engine import GatewayEngine
    __getattr__ = names_of(__name__, {"engine": "GatewayEngine"})

What a configuration asks for, and nothing else does, is imported inside of the function that starts
it: at the start, before a request depends on it, and never by a request, which a running loop would
wait for. `tests/integration/test_imports.py` has what no plain system imports.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


def names_of(package: str, modules: Mapping[str, str]) -> Callable[[str], object]:
    """Return the `__getattr__` of a package.

    Args:
        package: its `__name__`.
        modules: the public names of each of its modules, separated by blanks. No name is that of a
            module: whoever imports that would find the module in its place.
    """
    homes = {name: module for module, names in modules.items() for name in names.split()}

    def load(name: str) -> object:
        home = homes.get(name)
        if home is None:
            raise AttributeError(f"{package} has no public name {name!r}")
        value = getattr(import_module(f"{package}.{home}"), name)
        setattr(sys.modules[package], name, value)  # the next use is a plain attribute
        return value

    return load
