"""Running the command line in this process, as `synchromesh` would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from synchromesh.cli import main


class Ran(NamedTuple):
    """What a command line came to."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


def runner(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return what runs a command line in a folder; none may end with a traceback."""

    def invoke(folder: Path, *words: str) -> Ran:
        with pytest.raises(SystemExit) as ended:
            main(["--folder", str(folder), *words])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        code = ended.value.code
        assert isinstance(code, int)
        return Ran(code, out, err)

    return invoke
