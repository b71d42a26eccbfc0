"""Runs the command line as `python -m synchromesh.cli`, with whatever Python one has at hand."""

from synchromesh.cli.main import main

if __name__ == "__main__":
    main()
