"""Groups of commands: who asks for one that is not there is told which command does it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

import click

# What other programs call it, or what people try first.
ALSO = {
    "create": ("new",),
    "doctor": ("advise", "config check"),
    "explain": ("why",),
    "graph": ("blast", "console"),
    "health": ("status",),
    "init": ("new",),
    "metrics": ("status", "console"),
    "ps": ("status",),
    "serve": ("dev", "run"),
    "start": ("dev", "run"),
    "top": ("status",),
    "traces": ("trace",),
    "up": ("dev", "run"),
    "validate": ("config check", "gateway check", "contract check"),
}


class LazyCommand(click.Command):
    """A placeholder for a command in the list, so that only the one that runs is imported."""

    def __init__(self, name: str, module: str, attribute: str, short_help: str) -> None:
        super().__init__(name, short_help=short_help)
        self._place = f"synchromesh.cli.{module}", attribute

    def load(self) -> click.Command:
        """Import and return the command."""
        module, attribute = self._place
        command: click.Command = getattr(import_module(module), attribute)
        return command


class CommandGroup(click.Group):
    """Lists commands without importing them; of what it has not it says what does it."""

    # Groups within it are of this class, too.
    group_class = type

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Import and return the command named by the first argument, and the other arguments."""
        word = args[0]
        is_unknown = self.get_command(ctx, word) is None and not word.startswith("-")
        if is_unknown and not ctx.resilient_parsing and (hint := self._hint(ctx, word)):
            raise click.UsageError(f"No such command {word!r}{hint}", ctx)
        name, found, rest = super().resolve_command(ctx, args)
        return name, found.load() if isinstance(found, LazyCommand) else found, rest

    def _hint(self, ctx: click.Context, word: str) -> str:
        near = 0.85 if ctx.parent is None else 0.6
        from difflib import get_close_matches

        if get_close_matches(word, self.commands, cutoff=near):
            return ""  # a slip, of which click names what was meant; nothing is imported for it
        if ctx.parent is not None:
            return f"; {ctx.command_path} has: {', '.join(sorted(self.commands))}"
        found = [path for path in _paths(self) if path.rpartition(" ")[2] == word]
        found += [path for path in ALSO.get(word, ()) if path not in found]
        return f"; what does it: {', '.join(f'synchromesh {each}' for each in found)}" * bool(found)


def _paths(group: click.Group, above: str = "") -> Iterator[str]:
    """Yield the words of every command of a group, and of groups within it."""
    for name, command in sorted(group.commands.items()):
        loaded = command.load() if isinstance(command, LazyCommand) else command
        yield f"{above}{name}"
        if isinstance(loaded, click.Group):
            yield from _paths(loaded, f"{above}{name} ")
