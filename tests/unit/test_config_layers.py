"""File < environment < flag: each value with where it came from, and secrets by reference."""

from __future__ import annotations

import base64
import importlib.util
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli_runs import Run, runner
from notes_app import TOML, Running, write_config
from synchromesh.errors import ConfigError
from synchromesh.system import RunDir, load_config
from synchromesh.system.config.layers import Setting, lines_of
from synchromesh.system.config.reading import read_layers
from synchromesh.system.config.schema import SystemConfig
from synchromesh.system.config.secrets import SECRET_BYTES_MAX, read_secret, signing_key

SYSTEM = """[system]
name = "x"

[services.orders]
app = "a:a"
port = 8000

[services.billing]
app = "b:b"

[external.bank]
url = "http://bank"

[policies."orders:billing"]
timeout = "1s"
retry = { attempts = 2 }
limit = { in_flight = 8 }
"""
PORT = "SYNCHROMESH_SERVICES__ORDERS__PORT"
HEX = "0123456789abcdef" * 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a system with two services and an external one."""
    return write_config(tmp_path, SYSTEM)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in a folder, in this process."""
    return runner(capsys)


def read(
    folder: Path, environment: Mapping[str, str] | None = None, flags: Sequence[str] = ()
) -> SystemConfig:
    """Read the configuration under an environment and flags."""
    return load_config(folder, environment=environment or {}, flags=flags)


def explained(
    folder: Path, environment: Mapping[str, str] | None = None, flags: Sequence[str] = ()
) -> dict[str, tuple[Any, str, str]]:
    """Return value, source and place of each setting."""
    config, layers = read_layers(folder, environment=environment or {}, flags=flags)
    settings: list[Setting] = layers.settings(config)
    return {s.name: (s.value, s.source, s.place) for s in settings}


def test_a_flag_goes_before_the_environment_and_that_before_the_file(folder: Path) -> None:
    """Each layer alone, and all of them together."""
    flag = "services.orders.port=8002"
    assert read(folder).services["orders"].port == 8000
    assert read(folder, {PORT: "8001"}).services["orders"].port == 8001
    assert read(folder, {}, [flag]).services["orders"].port == 8002
    assert read(folder, {PORT: "8001"}, [flag]).services["orders"].port == 8002


def test_every_kind_of_value_can_be_set(tmp_path: Path) -> None:
    """Texts, numbers, lists as JSON, texts by a name of one's own, edges, deeper sections."""
    text = SYSTEM.replace('url = "http://bank"', 'command = ["bank"]')
    config = read(
        write_config(tmp_path, text),
        {
            "SYNCHROMESH_SYSTEM__HOST": "0.0.0.0",
            "SYNCHROMESH_EXTERNAL__BANK__COMMAND": '["bank", "--fast"]',
            "SYNCHROMESH_EXTERNAL__BANK__ENV__Bank__DB": "b.db",
            "SYNCHROMESH_POLICIES__ORDERS__BILLING__RETRY__ATTEMPTS": "5",
            "SYNCHROMESH_POLICIES__BILLING__BANK__TIMEOUT": "300ms",
            "SYNCHROMESH_DEV__OPENING": "a=b:c",
        },
        ["policies.orders:billing.breaker.failure_rate=0.25", "dev.opening=shop:open=shop"],
    )
    assert config.system.host == "0.0.0.0"
    assert config.external["bank"].command == ["bank", "--fast"]
    assert config.external["bank"].env == {"Bank__DB": "b.db"}
    edge = config.policies["orders:billing"]
    assert (edge.timeout, edge.retry.attempts, edge.breaker.failure_rate) == ("1s", 5, 0.25)
    assert config.policies["billing:bank"].timeout == "300ms"
    assert config.dev.opening == "shop:open=shop"


def test_what_the_file_lacks_may_come_from_above(tmp_path: Path) -> None:
    """A required value is required of all layers together."""
    folder = write_config(tmp_path, '[services.a]\napp = "a:a"\n')
    assert read(folder, {"SYNCHROMESH_SYSTEM__NAME": "named"}).system.name == "named"


@pytest.mark.parametrize(
    ("variable", "text", "said"),
    [
        (PORT, "abc", f"{PORT}: services.orders.port: expected `int`, got 'abc'"),
        (PORT, "", f"{PORT}: services.orders.port: expected `int`, got ''"),
        (PORT, "70000", f"{PORT}: port 70000 is not one"),
        ("SYNCHROMESH_SERVICES__BILLING__PORT", "8000", "port 8000 is given twice, also at "),
        ("SYNCHROMESH_SERVICES__ODERS__PORT", "1", "'services.oders'; did you mean 'orders'?"),
        ("SYNCHROMESH_SERVICES__ORDERS__PROT", "1", "did you mean 'port'?"),
        ("SYNCHROMESH_SERVICES__ORDERS__PORT__X", "1", "unknown key 'services.orders.port.x'"),
        ("SYNCHROMESH_SERVICES__ORDERS", "1", "services.orders is a section; set one of its keys"),
        ("SYNCHROMESH_SYSTEM__", "1", "unknown key 'system.'; known: name, host"),
        ("SYNCHROMESH___NAME", "1", "unknown key ''; known: system, services"),
        ("SYNCHROMESH_SYTEM__NAME", "y", "unknown key 'sytem'; did you mean 'system'?"),
        ("SYNCHROMESH_SYSTEM__LOOP", "trio", "system.loop: invalid enum value 'trio'"),
        ("SYNCHROMESH_SYSTEM__HOST", "\udcff", "system.host is not UTF-8 text"),
        ("SYNCHROMESH_EXTERNAL__BANK__COMMAND", "bank", "expected a list as JSON, such as"),
        ("SYNCHROMESH_EXTERNAL__BANK__COMMAND", "[1]", "expected `str`, got `int`"),
        ("SYNCHROMESH_POLICIES__ORDERS__BANKS__TIMEOUT", "1s", "did you mean 'orders:bank'?"),
        ("SYNCHROMESH_POLICIES__ORDERS__BANK__TIMEOUT", "1", "'1' is not a duration"),
        (
            "SYNCHROMESH_SERVICES_ORDERS__REPLICAS",
            "3",
            "sets nothing; did you mean SYNCHROMESH_SERVICES__ORDERS__REPLICAS?",
        ),
        (
            "SYNCHROMESH_SERVICES__ORDERS_IN_FLIGHT",
            "3",
            "sets nothing; did you mean SYNCHROMESH_SERVICES__ORDERS__IN_FLIGHT?",
        ),
        (
            "SYNCHROMESH_POLICIES__ORDERS_BANK__RETRY_ATTEMPTS",
            "3",
            "did you mean SYNCHROMESH_POLICIES__ORDERS__BANK__RETRY__ATTEMPTS?",
        ),
        (
            "SYNCHROMESH_POLICIES__ORDERS__BANK__RETRY__ATTEMPTS",
            "0",
            '__ATTEMPTS: [policies."orders:bank"] retry.attempts = 0; make it 1',
        ),
        ("SYNCHROMESH_SYSTEM_HOST", "h", "sets nothing; did you mean SYNCHROMESH_SYSTEM__HOST?"),
    ],
)
def test_a_wrong_variable_is_named(folder: Path, variable: str, text: str, said: str) -> None:
    """The message begins with the variable, and says what would be right."""
    with pytest.raises(ConfigError) as caught:
        read(folder, {variable: text})
    assert said in caught.value.message
    assert variable in caught.value.message


@given(st.data())
def test_a_variable_and_a_flag_reach_the_same_values(data: st.DataObject) -> None:
    """Any value of the schema can be set by either, to any text or number, and is then in force."""
    with tempfile.TemporaryDirectory() as place:
        folder = write_config(Path(place), SYSTEM)
        name, value = data.draw(
            st.sampled_from(
                [
                    (name, value)
                    for name, (value, _, _) in explained(folder).items()
                    # Nor what bounds a limit that is not fixed, as this one is, nor what has
                    # bounds of its own.
                    if type(value) in (int, float, str)
                    and not name.endswith((".least", ".most"))
                    and not name.startswith("gateway.clients.")
                ]
            )
        )
        kind = {int: st.integers(1, 65_535), float: st.floats(0.01, 1.0), str: st.just(value)}
        # More than one replica goes with no port, nor with any number of them; and what bounds
        # clients has bounds of its own.
        is_narrow = name.endswith(".replicas") or name.startswith("gateway.clients.")
        drawn = st.just(value) if is_narrow else kind[type(value)]
        text = str(data.draw(drawn))
        variable = "SYNCHROMESH_" + name.replace(":", "__").replace(".", "__").upper()
        by_variable = explained(folder, {variable: text})
        by_flag = explained(folder, {}, [f"{name}={text}"])
    assert by_variable[name] == (type(value)(text), "environment", variable)
    assert by_flag[name] == (type(value)(text), "flag", f"--set {name}")
    del by_variable[name], by_flag[name]
    assert by_variable == by_flag


def test_variables_of_others_are_left_alone(folder: Path) -> None:
    """Only names with "__" in them are settings; what begins alike may be somebody else's."""
    others = {"SYNCHROMESH_DEBUG": "1", "SYNCHROMESH_SERVICE_HOST": "10.0.0.1", "X__Y": "1"}
    assert read(folder, others) == read(folder)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["services.orders.port=x"], "--set services.orders.port: services.orders.port: expected"),
        (["services.oders.port=1"], "unknown key 'services.oders'; did you mean 'orders'?"),
        (["services=1"], "services is a section; set one of its keys: orders, billing"),
        (["external.bank.env=1"], "external.bank.env is a section; set one of its keys: a name"),
        (["services.orders.port.x=1"], "unknown key 'services.orders.port.x'; known: nothing"),
        (["system.name=y", "ports"], "--set number 2 is not a setting; write section.key=value"),
        (["=1"], "--set number 1 is not a setting"),
        (["system.name=y", "system.name=z"], "--set system.name is given twice"),
    ],
)
def test_a_wrong_flag_is_named(folder: Path, flags: list[str], said: str) -> None:
    """The message begins with the flag, and says what would be right."""
    with pytest.raises(ConfigError) as caught:
        read(folder, {}, flags)
    assert said in caught.value.message


@pytest.mark.parametrize("section", ["services = 3", "services = [1]", "[[services]]\na = 1"])
@pytest.mark.parametrize("name", ["services", "services.a", "services.a.port"])
def test_a_section_that_is_no_table_is_a_mistake(tmp_path: Path, section: str, name: str) -> None:
    """A layer over a file that is wrong in its shape is told so, as the file alone is."""
    folder = write_config(tmp_path, f'{section}\n[system]\nname = "x"\n')
    for flags in ([], [f"{name}=1"]):
        with pytest.raises(ConfigError, match="services"):
            read(folder, {}, flags)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SYSTEM.replace("8000", '"80"'), ":6: services.orders.port: expected `int`"),
        (SYSTEM.replace("port", "prot"), ":6: unknown key 'services.orders.prot'"),
        (SYSTEM.replace("attempts", "atempts"), ":16: unknown key 'policies.orders:billing.retry"),
        (SYSTEM.replace('app = "b:b"', ""), ":8: services.billing: key `app` is missing"),
        (SYSTEM.replace("http:", "ftp:"), ":12: [external.bank] url"),
    ],
)
def test_what_is_wrong_in_the_file_has_its_line(tmp_path: Path, text: str, said: str) -> None:
    """A message names the file and the line, as editors read it."""
    with pytest.raises(ConfigError) as caught:
        read(write_config(tmp_path, text))
    assert f"{tmp_path / 'synchromesh.toml'}{said}" in caught.value.message


def test_every_value_says_where_it_came_from(folder: Path) -> None:
    """Defaults, lines, variables and flags; a part of an inline table has the table's line."""
    told = explained(folder, {PORT: "8001"}, ["system.loop=asyncio"])
    assert told["services.orders.port"] == (8001, "environment", PORT)
    assert told["system.loop"] == ("asyncio", "flag", "--set system.loop")
    assert told["services.orders.app"] == ("a:a", "file", "synchromesh.toml:5")
    assert told["services.orders.pages_max"] == (0, "default", "")
    assert told["policies.orders:billing.retry.attempts"] == (2, "file", "synchromesh.toml:16")
    assert told["policies.orders:billing.breaker.window"] == ("10s", "default", "")
    assert told["external.bank.command"] == ([], "default", "")


def test_lines_are_found_past_what_only_looks_like_keys() -> None:
    """Texts over several lines, arrays, comments and dotted keys lead nobody astray."""
    text = (
        'a.b = """\n[no]\nc = 1\n"""\n# d = 2\n[ e ] # why\n"f g" = [\n  "h = 1",\n]\n'
        "[[i]]\nj = 1\n"
    )
    lines = lines_of(text)
    assert (lines["a", "b"], lines["e",], lines["e", "f g"]) == (1, 6, 7)
    assert ("no",) not in lines
    assert all(name[-1] not in ("c", "d", "h") for name in lines)


@given(st.text(max_size=200))
def test_any_text_has_lines_or_none(text: str) -> None:
    """Looking for lines fails on no text, valid or not."""
    assert all(number >= 1 for number in lines_of(text).values())


# -- secrets -------------------------------------------------------------------------------------


def test_a_secret_is_never_written_itself(folder: Path) -> None:
    """A key in the file, a variable or a flag is refused, and is not in the message."""
    (folder / "synchromesh.toml").write_text(SYSTEM.replace('"x"', f'"x"\nkey = "{HEX}"'))
    for environment, flags in (
        ({}, []),
        ({"SYNCHROMESH_SYSTEM__KEY": HEX}, []),
        ({}, [f"system.key={HEX}"]),
        ({}, [f"system.key:{HEX}"]),
        ({}, [f"system.kye={HEX}"]),
    ):
        with pytest.raises(ConfigError) as caught:
            read(folder, environment, flags)
        assert HEX not in repr(caught.value)
        assert HEX not in repr(caught.value.__cause__)


@pytest.mark.parametrize(
    "text", [HEX, HEX.upper() + "\n", base64.b64encode(b"\xfb" * 32).decode(), "-_" * 22]
)
def test_the_key_is_hex_or_base64(tmp_path: Path, text: str) -> None:
    """Both alphabets, with or without padding, with or without an end of line."""
    (tmp_path / "key").write_text(text)
    rundir = RunDir(tmp_path)
    by_file = signing_key("file:key", rundir, tmp_path, {})
    assert by_file == signing_key("env:K", rundir, Path("/"), {"K": text})
    assert len(by_file) >= 32
    assert not rundir.path.exists()


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("env:GONE", "system.key: the variable GONE is not set"),
        ("env:EMPTY", "system.key: env:EMPTY is empty"),
        ("env:SHORT", "env:SHORT has 4 bytes, at least 32 are needed; make one with: openssl"),
        ("env:WORDS", "env:WORDS is neither hex nor base64"),
        ("env:ODD", "env:ODD is neither hex nor base64"),
        ("file:gone", "gone cannot be read: No such file"),
        ("file:.", "cannot be read: Is a directory"),
        ("file:raw", "raw is not UTF-8 text; write it as hex or base64"),
        ("file:long", f"is longer than {SECRET_BYTES_MAX} bytes"),
        ("env:", 'write "env:NAME" or "file:PATH"'),
        ("file:", 'write "env:NAME" or "file:PATH"'),
        ("s3cret", 'write "env:NAME" or "file:PATH"'),
    ],
)
def test_a_key_that_cannot_be_used_is_named(tmp_path: Path, reference: str, said: str) -> None:
    """The message has the reference, the reason and the mend, and nothing of the secret."""
    (tmp_path / "raw").write_bytes(b"\xff" * 32)
    (tmp_path / "long").write_text("a" * (SECRET_BYTES_MAX + 1))
    environment = {"EMPTY": " \n", "SHORT": "deadbeef", "WORDS": "not a k-ey!", "ODD": HEX[:-1]}
    with pytest.raises(ConfigError) as caught:
        signing_key(reference, RunDir(tmp_path), tmp_path, environment)
    assert said in caught.value.message
    told = repr((caught.value, caught.value.__cause__))
    assert not any(secret.strip() and secret in told for secret in environment.values())
    assert "s3cret" not in told


def test_a_secret_may_stand_anywhere(tmp_path: Path) -> None:
    """A path that is absolute is taken as it is; one with a colon in it is a path too."""
    (tmp_path / "a:b").write_text("one\n")
    for reference in ("file:a:b", f"file:{tmp_path}/a:b"):
        assert read_secret(reference, name="n", folder=tmp_path, environment={}) == "one"


# -- the commands ----------------------------------------------------------------------------------


def test_explain_shows_layers_and_hides_secrets(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For people a table, for programs JSON; of a secret its reference only."""
    monkeypatch.setenv(PORT, "8001")
    monkeypatch.setenv("KEY", HEX)
    words = ("config", "explain", "--set", "system.key=env:KEY")
    table, told = run(folder, *words), run(folder, *words, "--json")
    assert (table.code, table.err, told.code, told.err) == (0, "", 0, "")
    assert HEX not in table.out + told.out
    shown = table.out.partition("\n\n")[0].splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in shown}
    assert rows["services.orders.port"] == ["8001", PORT]
    assert rows["system.key"] == ['"env:KEY"', "--set", "system.key"]
    assert rows["system.host"][1:] == ["default"]
    settings = {setting.pop("name"): setting for setting in json.loads(told.out)["settings"]}
    assert settings["system.key"] == {
        "value": "env:KEY",
        "source": "flag",
        "place": "--set system.key",
    }
    assert settings["system.name"]["place"] == "synchromesh.toml:2"
    assert list(rows)[1:] == list(settings)


@pytest.mark.parametrize("command", ["explain", "check"])
def test_a_mistake_in_the_configuration_is_exit_2(run: Run, folder: Path, command: str) -> None:
    """Both verbs say what is wrong on standard error, and nothing else."""
    ran = run(folder, "config", command, "--set", "services.oders.port=1")
    assert (ran.code, ran.out) == (2, "")
    assert "did you mean 'orders'?" in ran.err


def test_check_looks_at_definitions_and_secrets(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `dev` would refuse before anything listens is refused, and nothing is made."""
    monkeypatch.syspath_prepend(tmp_path)
    folder = write_config(tmp_path / "system", TOML)
    well = run(folder, "config", "check")
    assert (well.code, well.out) == (0, "notebook: all is right with notes\n")
    two = ("--set", "gateway.app=notes_app:way_in", "--set", "gateway.replicas=2")
    well = run(folder, "config", "check", *two)
    assert well.out.splitlines()[1:] == [
        "one of the 2 gateways ([gateway] replicas) runs without --split"
    ]
    told = run(folder, "config", "check", "--json")
    assert json.loads(told.out) == {"system": "notebook", "services": ["notes"]}
    for setting, said in (
        ("services.notes.app=notes_app:nots", "has no 'nots'"),
        ("dev.opening=notes_app:no_opening", "is not an async function"),
        ("system.key=file:gone", "gone cannot be read"),
        ("gateway.app=notes_app:notes", "is not a Gateway"),
    ):
        wrong = run(folder, "config", "check", "--set", setting)
        assert (wrong.code, wrong.out) == (2, "")
        assert said in wrong.err
    assert [path.name for path in folder.iterdir()] == ["synchromesh.toml"]


APP = "async def app(scope, receive, send):\n    pass\n"
AUTH = 'JWT(issuer="https://id.example", audience="api", jwks="keys.json")'
GATEWAY = f"from synchromesh import JWT, Gateway\n\ngateway = Gateway(routes=[], auth=[{AUTH}])\n"
NEEDS = {
    "uvicorn": ("services.shop_app.server=uvicorn", "uvicorn is not installed: pip install uvi"),
    "granian": ("services.shop_app.server=granian", "granian is not installed: pip install gra"),
    "uvloop": ("system.loop=uvloop", r"pip install 'WHEEL[fast]'"),
    "nats": ("engine.nats=nats://127.0.0.1:9", "[engine] nats needs the extra 'nats': pip install"),
    "asyncpg": ("engine.postgres=postgresql://127.0.0.1:9", "pip install 'WHEEL[postgres]'"),
    "joserfc": ("gateway.app=needing_jwt:gateway", "JWT needs the extra 'jwt': pip install"),
}


def test_a_package_that_the_configuration_needs_is_named_before_anything_starts(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `config check` and by `dev`, one as several, and with what installs each."""
    (tmp_path / "needing_app.py").write_text(APP)
    (tmp_path / "needing_jwt.py").write_text(GATEWAY)
    monkeypatch.syspath_prepend(tmp_path)
    toml = f'{TOML}\n[services.shop_app]\napp = "needing_app:app"\n'
    folder = write_config(tmp_path / "system", toml)
    every = [name for name in NEEDS if name != "granian"]  # its setting is that of uvicorn
    settings = [word for name in every for word in ("--set", NEEDS[name][0])]
    missing = set(NEEDS)
    found = importlib.util.find_spec
    for module in ("asgi_servers.find_spec", "extras.find_spec", "loops.importlib.util.find_spec"):
        monkeypatch.setattr(
            f"synchromesh.system.host.{module}",
            lambda name: None if name in missing else found(name),
        )
    for name in NEEDS:
        missing = {name}
        need, said = NEEDS[name]
        ran = run(folder, "config", "check", "--set", need)
        assert (ran.code, ran.out) == (2, ""), name
        assert said in ran.err
    missing = {"uvicorn", "granian"}
    for verb in (("config", "check"), ("dev",)):
        ran = run(folder, *verb)
        assert (ran.code, ran.out) == (2, "")
        assert "[services.shop_app] app is an ASGI application" in ran.err
        assert "neither uvicorn nor granian is installed: pip install uvicorn" in ran.err
    missing = set(NEEDS)
    ran = run(folder, "config", "check", *settings)
    assert ran.code == 2
    for name in every:
        assert NEEDS[name][1] in ran.err
    assert not list((folder / ".synchromesh").glob("run.json"))


def test_a_system_signs_with_the_key_that_it_is_given(run: Run, tmp_path: Path) -> None:
    """No key is made in the run directory, calls work, and no file of the run has the secret."""
    (tmp_path / "key").write_text(HEX)
    folder = write_config(tmp_path / "s", TOML.replace('"notebook"', '"n"\nkey = "file:../key"'))
    with Running(folder):
        assert run(folder, "call", "notes.count").code == 0
    files = [path for path in (folder / ".synchromesh").rglob("*") if path.is_file()]
    assert "system.key" not in {path.name for path in files}
    assert not any(HEX.encode() in path.read_bytes() for path in files)
