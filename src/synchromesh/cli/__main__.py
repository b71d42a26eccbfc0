"""Runs the command line as `python -m synchromesh.cli`."""

from synchromesh.cli.main import main

if __name__ == "__main__":
    main()
