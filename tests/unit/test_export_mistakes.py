"""What is wrong about an export is named before anything is served."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli_runs import runner
from notes_app import TOML, write_config
from synchromesh.errors import ConfigError
from synchromesh.runtime import RealRuntime
from synchromesh.system import System, load_config
from synchromesh.system.host.otlp_target import collector_of

OTLP = '\n[telemetry]\notlp = "https://c.example/base/"\n'
MISTAKES = {
    "no variable": (
        'headers = { authorization = "env:NOT_THERE" }',
        "[telemetry] headers.authorization: the variable NOT_THERE is not set",
    ),
    "no header": (
        'headers = { authorization = "file:two-lines" }',
        "[telemetry] headers.authorization: file:two-lines has what no header may have",
    ),
    "no authority": ('tls = { ca = "none.pem" }', "[telemetry] tls: "),
}


@pytest.mark.anyio
@pytest.mark.parametrize(("line", "said"), MISTAKES.values(), ids=MISTAKES.keys())
async def test_a_mistake_ends_a_start(line: str, said: str, tmp_path: Path) -> None:
    """One message with what to do, and nothing runs."""
    (tmp_path / "two-lines").write_text("a\nb")
    folder = write_config(tmp_path, TOML + OTLP + line)
    system = System(load_config(folder), folder, RealRuntime())
    with pytest.raises(ConfigError) as refused:
        await system.start()
    assert said in refused.value.message


@pytest.mark.parametrize(("line", "said"), MISTAKES.values(), ids=MISTAKES.keys())
def test_config_check_names_it(
    line: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With exit code 2."""
    (tmp_path / "two-lines").write_text("a\nb")
    ran = runner(capsys)(write_config(tmp_path, TOML + OTLP + line), "config", "check")
    assert (ran.code, said in ran.err) == (2, True)


def test_a_secret_that_stands_there_itself_is_refused_and_not_shown(tmp_path: Path) -> None:
    """It is to be a reference."""
    line = 'headers = { authorization = "Bearer hunter2" }'
    with pytest.raises(ConfigError, match=r"telemetry.headers.authorization") as refused:
        load_config(write_config(tmp_path, TOML + OTLP + line))
    assert "hunter2" not in refused.value.message


def test_where_it_goes_is_read_once(tmp_path: Path) -> None:
    """Host, port and prefix of the URL, and headers by reference."""
    line = 'headers = { authorization = "env:TOKEN" }\nsignals = ["logs"]'
    config = load_config(write_config(tmp_path, TOML + OTLP + line))
    collector = collector_of(config, tmp_path, {"TOKEN": "Bearer x\n"})
    assert (collector.host, collector.port, collector.prefix) == ("c.example", 443, "/base")
    assert collector.headers == (("authorization", "Bearer x"),)
    assert collector.signals == ("logs",)
