"""The reference is made from the code, is that of today, and leaves nothing out."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from importlib import import_module
from pathlib import Path

import msgspec
import pytest
from scripts import reference
from scripts.reference import EXAMPLES, FRONT_DOOR, MODULES, TESTING, meanings_of, pages

import synchromesh
import synchromesh.testing
from pages import ROOT, blocks_of
from synchromesh.errors import error_table
from synchromesh.system import SystemConfig

USERS_CODE = [
    *(ROOT / "src/synchromesh/examples/servo_works/contracts").glob("*.py"),
    *(ROOT / "src/synchromesh/examples/servo_works/services").rglob("*.py"),
    ROOT / "src/synchromesh/examples/servo_works/gateway.py",
    ROOT / "src/synchromesh/examples/servo_works/test_servo_works.py",
]


def names_in(groups: dict[str, str]) -> list[str]:
    """Return the names of all groups."""
    return [name for names in groups.values() for name in names.split()]


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_the_reference_is_of_today(path: Path) -> None:
    """A page is what the code says now; where this fails, run `make reference`."""
    assert path.read_text() == pages()[path]


def test_every_public_name_has_its_entry() -> None:
    """The front door and `synchromesh.testing` are there whole, each name once, and every error."""
    assert sorted(names_in(FRONT_DOOR)) == synchromesh.__all__
    assert sorted(names_in(TESTING)) == sorted(synchromesh.testing.__all__)
    text = (ROOT / "docs/reference/api.md").read_text()
    assert [c.__name__ for c in error_table().values() if f"| `{c.__name__}` |" not in text] == []


def imported_by_users() -> set[tuple[str, str]]:
    """Return the names that the documentation's code and servo-works import from packages."""
    sources = [path.read_text() for path in USERS_CODE]
    for page in ROOT.joinpath("docs").rglob("*.md"):
        sources += [b.body for b in blocks_of(page.read_text()) if b.language == "python"]
    return {
        (node.module.partition(".")[2], alias.name)
        for source in sources
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("synchromesh.")
        for alias in node.names
        if node.module
    }


def test_what_users_import_from_packages_has_its_entry() -> None:
    """No page and no service imports a name that the reference does not have."""
    known = {(package, name) for package, names in MODULES.items() for name in names.split()}
    known |= {("testing", name) for name in names_in(TESTING)}
    known |= {("errors", cls.__name__) for cls in error_table().values()}
    assert imported_by_users() - known == set()


@pytest.mark.parametrize(
    "value",
    [
        *(getattr(synchromesh, name) for name in names_in(FRONT_DOOR)),
        *(getattr(synchromesh.testing, name) for name in names_in(TESTING)),
        *(
            getattr(import_module(f"synchromesh.{package}"), name)
            for package, names in MODULES.items()
            for name in names.split()
        ),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_a_public_class_or_function_has_an_example(value: object) -> None:
    """It is in its docstring, where `test_tidy` runs it; errors need none, nor do Protocols."""
    if not inspect.isclass(value) and not inspect.isroutine(value):
        return
    if inspect.isclass(value) and (
        getattr(value, "_is_protocol", False)
        or (issubclass(value, Exception) and value.__name__ not in synchromesh.__all__)
    ):
        return
    assert ">>> " in (value.__doc__ or ""), value


def sections() -> list[type[msgspec.Struct]]:
    """Return every section of `synchromesh.toml`."""
    found = []
    for field in msgspec.structs.fields(SystemConfig):
        struct = reference.struct_of(field.type)
        found += [struct, *reference.nested_in(struct)]
    return found


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_every_key_of_the_file_has_a_meaning_and_an_example(section: type[msgspec.Struct]) -> None:
    """The docstring of a section says of each of its keys what it means, and of no other one."""
    fields = msgspec.structs.fields(section)
    assert list(meanings_of(section)) == [field.name for field in fields]
    whole = "".join(EXAMPLES.values())
    missing = [f.encode_name for f in fields if not re.search(rf"\b{f.encode_name}( = |\.)", whole)]
    assert missing == []


def test_the_examples_of_the_sections_are_one_file() -> None:
    """Together they are a `synchromesh.toml` that the schema takes."""
    data = tomllib.loads("".join(EXAMPLES.values()))
    config = msgspec.convert(data, SystemConfig)
    assert set(data) == {field.encode_name for field in msgspec.structs.fields(SystemConfig)}
    assert all(policy.compile() for policy in config.policies.values())
