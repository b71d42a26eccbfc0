"""Runs the demo: `python -m synchromesh.examples.servo_works.demo`."""

import sys
from pathlib import Path

# The modules of an example are named from its own folder, as its system names them.
sys.path.insert(0, str(Path(__file__).parents[1]))

from demo.main import main

if __name__ == "__main__":
    sys.exit(main())
