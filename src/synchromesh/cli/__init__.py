"""The command line: one file a command; each prints a table, or JSON with `--json`.

A command's module declares it, and imports what it works with when it runs: help comes at once.

Exit codes: 0 done, 1 a finding (such as a call that was refused), 2 the user's mistake, 3 internal.
"""

from synchromesh.cli.main import main

__all__ = ["main"]
