"""The command line: one file a verb; each prints a table for people and `--json` for programs.

Exit codes: 0 done, 1 a finding (such as a call that was refused), 2 the user's mistake, 3 internal.
"""

from synchromesh.cli.main import main

__all__ = ["main"]
