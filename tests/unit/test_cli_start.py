"""What the command line has imported before it does anything, and what its list says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from cli_runs import Run, runner
from synchromesh.cli.groups import ALSO, LazyCommand
from synchromesh.cli.main import synchromesh

HEAVY = ("asyncio", "sqlite3", "ssl", "httptools", "rich")

# Columns that are left for what the list says of a command, with 80 for all.
COLUMNS = 65

COMMANDS = {
    name: command
    for name, command in synchromesh.commands.items()
    if isinstance(command, LazyCommand)
}

# Runs command lines one after the other, and tells what modules there are after each.
PROGRAM = """
import contextlib, io, json, sys
from synchromesh.cli import main
told = []
for words in json.loads(sys.argv[1]):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            main(words)
        except SystemExit as ended:
            told.append([words, ended.code, out.getvalue(), sorted(sys.modules)])
print(json.dumps(told))
"""

Told = list[tuple[list[str], int, str, list[str]]]


def told_by(*lines: list[str]) -> Told:
    """Run command lines in one new interpreter that nothing measures; return what each came to."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith("COV")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(lines)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    told: Told = json.loads(done.stdout)
    return told


def down(command: click.Command, words: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the words of a command and of all that are below it."""
    found = [words]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            _, below, _ = command.resolve_command(context, [name])
            assert below is not None
            found += down(below, (*words, name))
    return found


@pytest.mark.parametrize("words", [["--help"], ["help"], ["--version"], [], ["stats"]])
def test_the_list_of_commands_imports_none_of_them(words: list[str]) -> None:
    """Nor does the version, or a word that is no command: only what tells errors is loaded."""
    [(_, _, out, modules)] = told_by(words)
    assert out
    assert [name for name in HEAVY if name in modules] == []
    assert [name for name in modules if name.startswith("synchromesh")] == [
        "synchromesh",
        "synchromesh.cli",
        "synchromesh.cli.groups",
        "synchromesh.cli.main",
        "synchromesh.cli.output",
        "synchromesh.errors",
    ]


def test_no_command_loads_what_it_works_with_to_explain_itself() -> None:
    """`COMMAND --help` imports no asyncio, sqlite3, ssl, httptools or rich, at any depth."""
    lines = [[*words, "--help"] for words in down(synchromesh)]
    assert ["gateway", "key", "add", "--help"] in lines
    for words, code, out, modules in told_by(*lines):
        assert (code, out.split()[0]) == (0, "Usage:"), words
        assert [name for name in HEAVY if name in modules] == [], words


def test_where_nothing_runs_is_told_without_what_would_show_it(tmp_path: Path) -> None:
    """`status` of a folder without a system loads no table, server, database or event loop."""
    [(_, code, out, modules)] = told_by(["--folder", str(tmp_path), "status"])
    assert (code, "start one there with: synchromesh dev" in out) == (2, True)
    assert [name for name in HEAVY if name in modules] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_of_a_command_what_its_help_says_first(name: str) -> None:
    """The list has the first sentence of a command's help; a shorter one where that is too long."""
    command = COMMANDS[name].load()
    listed = COMMANDS[name].short_help or ""
    assert (command.name, command.short_help) == (name, None)  # what is said stands in one place
    sentence, _, _ = " ".join((command.help or "").split()).partition(". ")
    sentence = f"{sentence.removesuffix('.')}."
    assert len(listed) <= COLUMNS
    assert listed == sentence or len(sentence) > COLUMNS
    assert listed.split()[0] == sentence.split()[0]


def test_a_word_that_is_no_command_gets_the_commands_that_are_like_it_or_do_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Exit 2, and no traceback."""
    run: Run = runner(capsys)
    for words, like in (
        (["stats"], "'status'"),
        (["sagas"], "'saga'"),
        (["saga", "lst"], "'list'"),
        (["explain"], "synchromesh config explain, synchromesh gateway explain, synchromesh why"),
        (["retry"], "synchromesh projection retry, synchromesh saga retry"),
        (["start"], "what does it: synchromesh dev, synchromesh run"),
        (["config", "values"], "synchromesh config has: check, explain"),
        (["gateway", "key", "drop"], "gateway key has: add, import, list, remove"),
    ):
        ran = run(tmp_path, *words)
        assert (ran.code, ran.out) == (2, "")
        assert f"No such command '{words[-1]}'" in ran.err
        assert like in ran.err


def test_what_else_a_command_may_be_called_leads_to_one_that_is_there() -> None:
    """None of the words is a command, and each of those that do it is."""
    there = {" ".join(words) for words in down(synchromesh)}
    assert not set(ALSO) & there
    assert {each for found in ALSO.values() for each in found} <= there


def test_a_command_is_completed_without_importing_any(tmp_path: Path) -> None:
    """A shell that completes words asks as often as Tab is pressed."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith("COV")}
    environment |= {"_SYNCHROMESH_COMPLETE": "bash_complete", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "synchromesh.cli"],
        env=environment | {"COMP_WORDS": "synchromesh s"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["plain,saga", "plain,schedule", "plain,status"]
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "synchromesh.cli.output" in imported
    assert imported.isdisjoint({"synchromesh.cli.saga", "synchromesh.cli.status", *HEAVY})
