"""The documentation is true: its code runs, its defaults, commands, errors and links are real."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import io
import re
import shlex
import sys
import tomllib
import types
from pathlib import Path

import click
import msgspec
import pytest

from pages import FENCE, blocks_of
from synchromesh.errors import SynchromeshError, error_table
from synchromesh.resilience import TRANSITIONS
from synchromesh.system.config.schema import SystemConfig

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*(ROOT / "docs").rglob("*.md"), *(ROOT / n for n in ("README.md", "CONTRIBUTING.md"))]
)
PATTERNS = [page for page in PAGES if page.parent.name == "patterns"]
SECTIONS = ["About", "Usage", "Defaults", "Telemetry", "Diagrams", "Anti-patterns"]

WITHIN = re.compile(r"\$\(([^()]+)\)")
NAMED = re.compile(r"`(synchromesh\s[^`]+)`")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")
DEFAULT = re.compile(r"^\| `(\w+)\.(\w+)` \| `(.+?)` \|", re.MULTILINE)
GUARANTEE = re.compile(r"^- \*\*([A-Z]\d+)\*\* (.*?)(?=^- |^\n|\Z)", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    """Name a page from the root of the repository."""
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a page in one language; those with a title are files."""
    return [
        block.body
        for block in blocks_of(page.read_text())
        if block.language == language and not block.title
    ]


def commands(page: Path) -> list[list[str]]:
    """Return the words of each `$ ...` line of a page, and of each `$(...)` in one."""
    typed = [line[2:] for line in page.read_text().splitlines() if line.startswith("$ ")]
    return [shlex.split(each) for line in typed for each in (line, *WITHIN.findall(line))]


def options() -> dict[str, type]:
    """Return the public dataclasses of the rooms by name."""
    found: dict[str, type] = {}
    for path in (ROOT / "src/synchromesh").glob("*/__init__.py"):
        if path.parent.name in ("cli", "examples", "testing"):
            continue
        room = importlib.import_module(f"synchromesh.{path.parent.name}")
        for value in (getattr(room, name) for name in room.__all__):
            if inspect.isclass(value) and dataclasses.is_dataclass(value):
                found[value.__name__] = value
    return found


def default_of(field: dataclasses.Field[object]) -> str:
    """Write a default as it stands in the documentation."""
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    return f"{getattr(field.default_factory, '__name__', '')}()"


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=name_of)
def test_the_code_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader who pastes a page's code, block after block, gets what the page says."""
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType(f"page_{page.stem.replace('-', '_')}")
    # Annotations are resolved through the module, as for any other one.
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for number, code in enumerate(blocks(page, "python"), 1):
        program = compile(code, f"{name_of(page)}, block {number}", "exec")
        with contextlib.redirect_stdout(io.StringIO()):
            exec(program, vars(module))


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=name_of)
def test_the_commands_of_a_page_exist(page: Path) -> None:
    """Every command and option of `synchromesh`, and every target of `make`, is a real one."""
    main = importlib.import_module("synchromesh.cli.main").synchromesh
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    for area in re.findall(r"^AREAS := (.*)$", makefile, re.MULTILINE)[0].split():
        assert (ROOT / "benchmarks" / f"{area}.py").is_file(), area
        targets.add(f"bench-{area}")
    for words in commands(page):
        if words[0] == "make":
            assert set(words[1:]) <= targets, words
        elif words[0] == "synchromesh":
            parse(main, words[1:])


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_dev_prints_is_shown_whole(page: Path) -> None:
    """Below the services stand the listeners of the system's own."""
    for shown in blocks(page, "console"):
        if "runs in process" in shown:
            assert re.search(r"^  control .*\n  admin .*\n  console ", shown, re.MULTILINE), shown


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_a_page_shows_says_what_it_is(page: Path) -> None:
    """Each fenced block names its language: one that names none is looked at by no test."""
    fences = [line for line in page.read_text().splitlines() if line.startswith("```")]
    assert "```" not in fences[::2]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_within_a_sentence_exist(page: Path) -> None:
    """Their options too; what stands for a word, such as NAME, is left open."""
    command: click.Command
    for named in NAMED.findall(FENCE.sub("", page.read_text())):
        command, words = importlib.import_module("synchromesh.cli.main").synchromesh, named.split()
        rest = words[1:]
        while rest and isinstance(command, click.Group) and not rest[0].startswith("-"):
            assert rest[0] in command.commands, named
            _, found, rest = command.resolve_command(click.Context(command), rest)
            assert found is not None
            command = found
        known = {option for each in command.params for option in each.opts}
        assert {word for word in rest if word.startswith("--")} <= known, named


def parse(command: click.Command, words: list[str]) -> None:
    """Parse words as the command line would, down to the last command, and run nothing."""
    while isinstance(command, click.Group):
        assert "".join(words[:1]) in command.commands, f"{command.name} has no command {words[:1]}"
        _, found, words = command.resolve_command(click.Context(command), words)
        assert found is not None
        command = found
    command.make_context(command.name, list(words))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_decisions_are_numbered_as_their_files(page: Path) -> None:
    """`[decision 20](adr/0020-...)`: who reads the number finds the file."""
    named = re.findall(r"\[decision\s+(\d+)\]\([^)]*?(\d{4})-", page.read_text())
    assert [each for each in named if int(each[0]) != int(each[1])] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    """A link within the repository names a file that is there."""
    broken = [
        target
        for target in LINK.findall(FENCE.sub("", page.read_text()))
        if not (page.parent / target).exists()
    ]
    assert broken == []


def test_the_glossary_has_one_meaning_each() -> None:
    """No term is explained twice, and the classes that it names are there."""
    text = (ROOT / "docs/glossary.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    terms = [term for row in rows for term in row[0].split(", ") if term != "term"]
    assert len(terms) == len(set(terms)) > 80
    source = "".join(path.read_text() for path in (ROOT / "src/synchromesh").rglob("*.py"))
    classes = set(re.findall(r"^class (\w+)", source, re.MULTILINE))
    classes |= set(re.findall(r"^(\w+): TypeAlias", source, re.MULTILINE))
    named = re.findall(r"`(?:[^`]*\W)?([A-Z][a-z]+[A-Za-z]*)(?=\W|`)", "".join(r[-1] for r in rows))
    assert len(named) > 50
    assert {*named} - classes == {"Synchromesh", "True"}  # a header, and a value


def test_every_page_is_in_the_navigation() -> None:
    """No page is written that nobody finds."""
    nav = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]
    listed = re.findall(r"[\w/-]+\.md", repr(nav))
    assert sorted(listed) == sorted(
        str(page.relative_to(ROOT / "docs")) for page in PAGES if ROOT / "docs" in page.parents
    )


@pytest.mark.parametrize("page", PATTERNS, ids=name_of)
def test_a_pattern_page_answers_the_same_questions(page: Path) -> None:
    """Each pattern has About, Usage, Defaults, Telemetry, Diagrams and Anti-patterns."""
    text = FENCE.sub("", page.read_text())
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS


def test_documented_defaults_are_those_of_the_code() -> None:
    """A class of options that a page lists is listed whole, with the defaults it has."""
    classes = options()
    documented: dict[str, dict[str, str]] = {}
    for page in PATTERNS:
        for owner, field, default in DEFAULT.findall(page.read_text()):
            documented.setdefault(owner, {})[field] = default
    assert documented
    for owner, fields in documented.items():
        real = {f.name: default_of(f) for f in dataclasses.fields(classes[owner])}
        assert fields == real, owner


def test_the_breaker_page_has_its_transitions() -> None:
    """The table of the page is the table that the breaker looks its next state up in."""
    text = (ROOT / "docs/patterns/circuit-breaker.md").read_text()
    for before, trigger, after in TRANSITIONS:
        assert f"| {before.value} | {trigger.value} | {after.value} |" in text
    rows = re.findall(r"^\| (?:closed|open|half_open|isolated|disabled) \|", text, re.MULTILINE)
    assert len(rows) == len(TRANSITIONS)


def test_every_error_has_its_entry() -> None:
    """The page of errors lists every code once, and no other."""
    text = (ROOT / "docs/errors.md").read_text()
    assert sorted(re.findall(r"^## `(\w+)`$", text, re.MULTILINE)) == sorted(error_table())


@pytest.mark.parametrize("cls", error_table().values(), ids=lambda cls: cls.code)
def test_an_error_is_described_as_it_is(cls: type[SynchromeshError]) -> None:
    """An entry has class, base, status and retry of the code, its words, and what to do."""
    text = (ROOT / "docs/errors.md").read_text()
    entry = re.search(rf"^## `{cls.code}`\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert entry is not None
    words = " ".join(entry[1].split())
    base = cls.__bases__[0].__name__
    kind = f"`{cls.__name__}`" if base == "Exception" else f"`{cls.__name__}`, a `{base}`"
    retry = "retry safe" if cls.is_retry_safe else "retry not safe by itself"
    assert f"{kind} · status {cls.status} · {retry} " in words
    first = (inspect.getdoc(cls) or "").partition("\n")[0].removeprefix("Raised when ")
    is_thing = first.startswith(("A ", "The root"))
    happened = (
        f"This is {first[0].lower()}{first[1:]}" if is_thing else first[0].upper() + first[1:]
    )
    assert f"**What happened.** {happened}" in words
    assert len(words.partition("**What to do.** ")[2]) > 10


def test_the_file_with_every_section_has_every_section() -> None:
    """It is read as it stands, and a section that comes later has to be put there."""
    (text,) = (each for each in blocks(ROOT / "docs/system.md", "toml") if "[system]" in each)
    found = msgspec.toml.decode(text, type=SystemConfig)
    assert set(tomllib.loads(text)) == {each.name for each in msgspec.structs.fields(SystemConfig)}
    assert found.external["catalogue"].weights == [3, 1]


@pytest.mark.parametrize("name", ["README.md", "docs/index.md"])
def test_every_extra_is_listed(name: str) -> None:
    """With the packages that it brings, and the wheel by the name that a build gives it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / name).read_text()
    listed = dict(re.findall(r"^\| `(\w+)` \| ([\w, -]+) \|", text, re.MULTILINE))
    assert list(listed) == list(project["optional-dependencies"])
    for extra, packages in project["optional-dependencies"].items():
        assert {each.partition(">")[0] for each in packages} <= set(listed[extra].split(", "))
    assert f"dist/synchromesh-{project['version']}-py3-none-any.whl[" in text
    installed = re.search(r"\.whl\[([\w,]+)\]", text)
    assert installed is not None
    assert {*installed[1].split(",")} <= {*listed}


def test_what_the_engines_do_names_tests_that_are_there() -> None:
    """Each row of the page has one; it would not be noticed otherwise where one is renamed."""
    text = (ROOT / "docs/engines.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", text))
    files = (path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    there = {name for each in files for name in re.findall(r"def (test_\w+)\(", each)}
    assert named - there == set()
    assert len(named) > 40


def test_guarantees_name_tests_that_are_there() -> None:
    """Each guarantee names the tests that prove it, or says that none does yet."""
    text = (ROOT / "docs/guarantees.md").read_text()
    guarantees = GUARANTEE.findall(text)
    assert len(guarantees) == len({name for name, _ in guarantees}) >= 45
    for name, words in guarantees:
        tests = re.findall(r"`(tests/[\w/]+\.py)`", words)
        assert bool(tests) != ("ot proved yet" in " ".join(words.split())), name
        missing = [test for test in tests if not (ROOT / test).exists()]
        assert missing == [], name
