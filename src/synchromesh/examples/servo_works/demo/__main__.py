"""Runs the demo: `python -m synchromesh.examples.servo_works.demo`."""

import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    # Nothing runs yet: Ctrl-C ends it, and nobody has to see what was being imported.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # The modules of an example are named from its own folder, as its system names them.
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from demo.main import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
