"""A planted bug: what it replaces, and where it is hunted."""

from __future__ import annotations

import contextlib
import inspect
import io
import pkgutil
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from universes.universe import Universe
from universes.weather import kinds_of

ROOT = Path(__file__).parents[2]
SEEDS_MAX = 2000
# What a bug breaks is found as well by an example that is not the smallest one.
HUNTING = ("--hypothesis-profile", "hunt")
# What comes of a planted function that has fallen behind the product is no finding.
_MISTAKE = re.compile(r"\b(Type|Attribute|Name|UnboundLocal)Error\b")
_ANYTHING = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


def load_tests(tests: Sequence[str]) -> None:
    """Import the modules of tests, given by path and name, and all that pytest needs."""
    files = sorted({str(ROOT / test.partition("::")[0]) for test in tests if test})
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = pytest.main([*files, "--collect-only", "-q", "-p", "no:cacheprovider"])
    if code != pytest.ExitCode.OK:
        raise RuntimeError(f"tests cannot be collected: {said.getvalue()[-2000:]}")
    # They may have by name what is replaced, so that each process has them anew.
    for name in [each for each in sys.modules if each.startswith("tests.") and ".test_" in each]:
        del sys.modules[name]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One planted bug.

    Attributes:
        name: what is wrong.
        target: the function that is replaced, by its full name.
        make: takes the function and returns what stands in its place.
        test: the test that finds it, by path and name; "" for universes.
        weather: what happens in the universes that are searched, such as "forgetting jumps"; ""
            for all.
    """

    name: str
    target: str
    make: Callable[[Any], Any]
    test: str = ""
    weather: str = ""

    def hunt(self) -> str:
        """Return what is broken; "" where nothing seems to be."""
        original = pkgutil.resolve_name(self.target)
        planted = self.make(original)
        self._compare(original, planted)
        with mock.patch(self.target, planted):
            found = self._test() if self.test else self._simulate()
        if _MISTAKE.search(found):
            raise TypeError(f"what is planted is not what it should be: {found}")
        return found

    def _compare(self, original: Any, planted: Any) -> None:
        """Raise TypeError where what is planted cannot be called as the product's function is."""
        if isinstance(planted, property):
            return
        has, wants = (inspect.signature(f).parameters for f in (planted, original))
        is_any = {each.kind for each in has.values()} >= _ANYTHING
        if not is_any and len(has) != len(wants):
            raise TypeError(f"{self.target} takes {[*wants]}, what is planted {[*has]}")

    def _simulate(self) -> str:
        for seed in range(SEEDS_MAX):
            if not {*self.weather.split()} <= kinds_of(seed):
                continue
            broken = Universe(seed).run().broken
            if broken:
                return f"seed {seed}: {broken[0]}"
        return ""

    def _test(self) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            code = pytest.main([str(ROOT / self.test), "-x", "-p", "no:cacheprovider", *HUNTING])
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            raise RuntimeError(f"{self.test} cannot be run: {said.getvalue()}")
        return said.getvalue()[-400:] if code else ""
