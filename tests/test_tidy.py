"""The house rules that no linter checks: sizes, banned calls, documented names, cheap imports."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "synchromesh"
MODULES = sorted(SOURCE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

LINES_MAX = 500
# The tree of errors is one table; divided, nobody would see it whole. Nothing may pass 800.
LONGER_MAX = {"src/synchromesh/errors.py": 800}
FUNCTION_LINES_MAX = 70
PARAMETERS_MAX = 8

# Where the world is taken in: everything else is handed a Runtime, or reads the loop's clock.
AT_THE_EDGE = ("clock.py", "network.py", "runtime.py", "system/", "cli/", "testing/", "examples/")
BANNED = re.compile(
    r"(time\.(time|monotonic|perf_counter)(_ns)?|time\.sleep|random\.[a-zS]\w*|uuid\.\w+|secrets\.\w+"
    r"|os\.(urandom|environ|getenv)|datetime\.(now|utcnow|today)|asyncio\.to_thread"
    r"|\w+\.run_in_executor|threading\.\w+|socket\.socket)"
)
# What stands in braces, but for a place of a path such as "/stock/{sku}".
BRACED = re.compile(r"(?<!\{)(?!(?<=/)\{\w+\})\{([^{}\n]+)\}")
HEAVY = ("asyncio", "sqlite3", "ssl", "httptools", "click", "rich")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    """Name a file as people do: from the root of the repository."""
    return str(path.relative_to(ROOT))


def module_of(path: Path) -> str:
    """Name the module of a source file."""
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def load(path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import a source file; an example is imported from its own folder, as its system does."""
    if "examples" not in path.parts:
        return importlib.import_module(module_of(path))
    folder = SOURCE / "examples" / path.relative_to(SOURCE / "examples").parts[0]
    monkeypatch.syspath_prepend(folder)
    parts = path.relative_to(folder).with_suffix("").parts
    return importlib.import_module(".".join(p for p in parts if p != "__init__"))


def functions(path: Path) -> Iterator[Function]:
    """Yield every function of a file, nested ones too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, Function):
            yield node


def calls(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield where each dotted name is used, and the name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.lineno, ast.unparse(node)


def unformatted(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield where a text has a name of its scope in braces and is no f-string, and what it has."""
    every = list(ast.walk(tree))
    spared = {n.value for n in every if isinstance(n, ast.Expr)}  # docstrings
    spared |= {n.value for n in every if isinstance(n, ast.Attribute) and n.attr == "format"}

    def within(parent: ast.AST, scope: set[str]) -> Iterator[tuple[int, str]]:
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if node not in spared:
                    yield from ((node.lineno, text) for text in _braced(node.value, scope))
            elif isinstance(node, Function | ast.Lambda):
                yield from within(node, scope | _bound(node))
            else:
                yield from within(node, scope)

    yield from within(tree, set().union(*map(_bound_outside, tree.body)))


def _braced(text: str, scope: set[str]) -> Iterator[str]:
    for found in BRACED.finditer(text):
        try:
            value = ast.parse(f"f{found[0]!r}", mode="eval")
        except SyntaxError:
            continue  # of a regular expression, or words
        names = {node.id for node in ast.walk(value) if isinstance(node, ast.Name)}
        if names and names <= scope:
            yield found[0]


def _bound(tree: ast.AST) -> set[str]:
    """Return the names that are given a value in a piece of code, also further in."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, Function | ast.ClassDef | ast.ExceptHandler) and node.name:
            names.add(node.name)
    return names


def _bound_outside(statement: ast.stmt) -> set[str]:
    """Return the names that a statement of a module gives a value in the module."""
    if isinstance(statement, Function | ast.ClassDef):
        return {statement.name}
    return _bound(statement)


def parameters(function: Function) -> list[str]:
    """Return the parameters that a caller gives."""
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [a.arg for a in every if a.arg not in ("self", "cls")]


def test_modules_are_short() -> None:
    """A module has at most 500 lines."""
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in MODULES}
    too_long = {n: c for n, c in lengths.items() if c > LONGER_MAX.get(n, LINES_MAX)}
    assert too_long == {}


def test_functions_are_short_and_take_few_parameters() -> None:
    """A function has at most 70 lines and 8 parameters; beyond, it takes an options value."""
    offenders = [
        f"{name_of(path)}:{f.lineno} {f.name}: {lines} lines, {len(parameters(f))} parameters"
        for path in MODULES
        for f in functions(path)
        if (lines := (f.end_lineno or f.lineno) - f.lineno + 1) > FUNCTION_LINES_MAX
        or len(parameters(f)) > PARAMETERS_MAX
    ]
    assert offenders == []


def test_a_name_has_one_meaning() -> None:
    """No two public classes of the package, its example's shell included, have the same name."""
    places: dict[str, list[str]] = {}
    for path in MODULES:
        if "examples" in path.parts and {"contracts", "services"} & set(path.parts):
            continue  # what servo-works calls the things of its own trade
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(name_of(path))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_nothing_is_left_for_later() -> None:
    """No marker of unfinished work, no stub that only raises, in what ships."""
    markers = re.compile(r"\b(TODO|FIXME|XXX|HACK|NotImplementedError)\b")
    offenders = [
        f"{name_of(path)}:{number} {line.strip()}"
        for path in (*MODULES, *TESTS)
        if path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if markers.search(line)
    ]
    assert offenders == []


def test_the_world_is_taken_in_at_the_edge_only() -> None:
    """Wall clock, chance, ids, threads and the environment come from Runtime everywhere else."""
    offenders = [
        f"{name_of(path)}:{line} {call}"
        for path in MODULES
        if not str(path.relative_to(SOURCE)).startswith(AT_THE_EDGE)
        for line, call in calls(_without_annotations(ast.parse(path.read_text())))
        if BANNED.fullmatch(call)
    ]
    assert offenders == []


def test_no_text_lacks_the_f_of_an_f_string() -> None:
    """What stands in braces in a text names nothing that is in scope there."""
    offenders = [
        f"{name_of(path)}:{line} {braced}"
        for path in MODULES
        for line, braced in unformatted(ast.parse(path.read_text()))
    ]
    assert offenders == []


def test_a_missing_f_is_found_and_nothing_else() -> None:
    """Names of the scope count: not those of templates, of paths, of docstrings and of `format`."""
    source = """
from os import sep
def say(name, port):
    "Say {name}."
    with_f = f"{name} in " "{port:>5}" f" at {{name}}"
    without = ["{name!r}", "{name.upper()} is", "by /{port:x}", "{self.name} {sep}"]
    fine = ["GET /notes/{name}", "{name}".format(name=name), "{blob}", "{3,4}", "{'name'}"]
"""
    assert list(unformatted(ast.parse(source))) == [
        (5, "{port:>5}"),
        (5, "{name}"),
        (6, "{name!r}"),
        (6, "{name.upper()}"),
        (6, "{port:x}"),
        (6, "{sep}"),
    ]


def test_rooms_do_not_import_the_front_door() -> None:
    """Only users import from `synchromesh` itself: a room imports from the room that has it."""
    offenders = [
        f"{name_of(path)}:{node.lineno}"
        for path in MODULES
        if "examples" not in path.parts
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and node.module == "synchromesh")
        or (isinstance(node, ast.Import) and any(a.name == "synchromesh" for a in node.names))
    ]
    assert offenders == []


@pytest.mark.parametrize(
    "path", [p for p in MODULES if "__all__" in p.read_text()], ids=lambda p: module_of(p)
)
def test_public_names_exist_and_say_their_contract(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every name of an `__all__` exists, and its docstring begins with one whole sentence."""
    module = load(path, monkeypatch)
    names: list[str] = list(module.__all__)
    assert len(names) == len(set(names))
    offenders = []
    for name in names:
        value = getattr(module, name)
        if not (inspect.isclass(value) or inspect.isroutine(value)):
            continue  # constants, type aliases and modules have a comment or a docstring of theirs
        first = (inspect.getdoc(value) or "").partition("\n")[0]
        if not first.endswith(".") or first.startswith(f"{name}("):
            offenders.append(f"{module.__name__}.{name}: {first!r}")
    assert offenders == []


@pytest.mark.parametrize(
    "path", [p for p in MODULES if ">>> " in p.read_text()], ids=lambda p: module_of(p)
)
def test_examples_in_docstrings_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a docstring shows is what happens."""
    module = load(path, monkeypatch)
    outcome = doctest.testmod(module, raise_on_error=False, verbose=False)
    assert outcome.failed == 0
    assert outcome.attempted > 0


def test_importing_the_package_loads_nothing_heavy() -> None:
    """`import synchromesh` loads no asyncio, sqlite3, ssl, httptools, click or rich."""
    program = (
        "import json, sys; import synchromesh; dir(synchromesh); "
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    assert _fresh(program) == []


def test_the_front_door_offers_what_the_rooms_have() -> None:
    """Each public name is the very object of its room, and an unknown one is an AttributeError.

    There are few: what most systems need. Options, and what few need, are imported from the rooms.
    """
    import synchromesh

    assert len(synchromesh.__all__) <= 32
    assert sorted(synchromesh.__all__) == synchromesh.__all__
    assert set(synchromesh.__all__) <= set(dir(synchromesh))
    for name in synchromesh.__all__:
        value = getattr(synchromesh, name)
        assert value.__module__.startswith("synchromesh."), name
        assert value.__name__ == name
    source = ast.parse((SOURCE / "__init__.py").read_text())
    for_checkers = [
        alias.name
        for block in source.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert sorted(for_checkers) == synchromesh.__all__
    with pytest.raises(AttributeError, match="no public name 'Sagga'"):
        _ = synchromesh.Sagga  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "room"),
    [
        ("RetryOptions", "resilience"),
        ("Cache", "gateway"),
        ("SagaPolicy", "saga"),
        ("Personal", "personal"),
        ("Shed", "errors"),
        ("DeliverOptions", "alone"),
        ("survive", "testing"),
    ],
)
def test_the_front_door_says_which_room_has_a_name(name: str, room: str) -> None:
    """What is not there is an ImportError that has the line to write, to who imports it alone."""
    assert not hasattr(importlib.import_module("synchromesh"), name)
    said = f"write: from synchromesh.{room} import {name}$"
    with pytest.raises(ImportError, match=said):
        exec(f"from synchromesh import {name}")


def test_the_front_door_lets_rooms_and_nothing_through() -> None:
    """A room is imported by its name, and a slip is told by Python, with the name it is like."""
    exec("from synchromesh import alone")
    for name in ("polizy", "__wrapped__", "_private"):
        assert not hasattr(importlib.import_module("synchromesh"), name)
        with pytest.raises(ImportError, match="cannot import name"):
            exec(f"from synchromesh import {name}")
    with pytest.raises(ImportError, match="cannot import name 'Polizy'"):
        exec("from synchromesh import Polizy")


def test_asking_for_a_name_that_is_nowhere_imports_nothing() -> None:
    """Such as a tool does that looks at a module: it is answered, and pays for no room."""
    code = (
        "import sys, synchromesh; before = set(sys.modules); "
        "found = [hasattr(synchromesh, each) for each in ('RetryOptions', 'survive', 'Polizy')]; "
        "print(found, [each for each in set(sys.modules) - before if 'synchromesh' in each])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[False, False, False] []\n"


def test_tests_state_their_claim_and_cannot_be_skipped() -> None:
    """Every test says in its docstring what it claims; none is skipped, excused or sleeps."""
    excuses = re.compile(r"pytest\.(skip|xfail|importorskip)|mark\.(skip|xfail)|\btime\.sleep\(")
    offenders = [
        f"{name_of(path)}:{f.lineno} {f.name} states no claim"
        for path in TESTS
        for f in functions(path)
        if f.name.startswith("test_") and not ast.get_docstring(f)
    ]
    offenders += [
        f"{name_of(path)}:{number} {line.strip()}"
        for path in TESTS
        if path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if excuses.search(line)
    ]
    assert offenders == []


def _without_annotations(tree: ast.Module) -> ast.Module:
    """Drop annotations: naming `random.Random` as a type takes no chance from anywhere."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign):
            node.annotation = ast.Constant(None)
        elif isinstance(node, Function):
            node.returns = None
    return tree


def _fresh(program: str) -> object:
    """Run a program in a new interpreter that nothing measures, and return the JSON it prints."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith("COV")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)
