"""The configuration: what is wrong is named with its place and its mend, before anything starts."""

from __future__ import annotations

import asyncio
import sys
import types
from pathlib import Path

import pytest
import uvloop

import db_app
import notes_app
from synchromesh.calls import OperationPolicy
from synchromesh.discovery import BalancerOptions
from synchromesh.errors import ConfigError, MissingExtra, SynchromeshError
from synchromesh.gateway import Gateway
from synchromesh.http import Limits, PoolLimits
from synchromesh.resilience import (
    AdaptiveLimitOptions,
    BudgetOptions,
    HedgeOptions,
    LimitOptions,
    Policy,
    RetryOptions,
)
from synchromesh.system import SystemConfig, load_config
from synchromesh.system.config.definitions import (
    check_keep,
    load_gateway,
    load_opening,
    load_services,
    retention_of,
    saga_places_of,
)
from synchromesh.system.config.edge_policies import policies_of
from synchromesh.system.config.schema import (
    BreakerSection,
    BudgetSection,
    HedgeSection,
    LimitSection,
    OperationSection,
    PolicySection,
)
from synchromesh.system.host.loops import loop_factory

SYSTEM = '[system]\nname = "x"\n'
ONE = SYSTEM + '[services.a]\napp = "a:a"\n'
EDGE = ONE + '[policies."a:a"]\n'


@pytest.fixture(autouse=True)
def _import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading services puts their folder on the import path; each test has its own."""
    monkeypatch.setattr(sys, "path", list(sys.path))


def refused(folder: Path, text: str) -> str:
    """Return what is said of a configuration that is refused."""
    notes_app.write_config(folder, text)
    with pytest.raises(ConfigError) as caught:
        load_config(folder)
    return caught.value.message


def test_a_whole_configuration_is_read(tmp_path: Path) -> None:
    """Every section is read, and what is left out has its default."""
    text = (
        ONE
        + 'port = 8080\n[external.b]\ncommand = ["b"]\nenv = { B = "{data}/b" }\n'
        + '[policies."a:b"]\ntimeout = "300ms"\nretry = { attempts = 2 }\n'
        + 'breaker = { open_for = "1s..4s" }\nlimit = { in_flight = 8, waiting = 2 }\n'
    )
    config = load_config(notes_app.write_config(tmp_path, text))
    assert (config.services["a"].port, config.services["a"].pages_max) == (8080, 0)
    assert config.external["b"].env == {"B": "{data}/b"}
    policy = config.policies["a:b"].compile()
    assert policy.retry is not None
    assert policy.breaker is not None
    assert policy.limit == LimitOptions(in_flight_max=8, queue_max=2)
    assert policy.breaker.probes_max == 32
    assert (policy.timeout_s, policy.retry.attempts_max) == (0.3, 2)
    assert (policy.breaker.open_for_s, policy.breaker.open_for_max_s) == (1.0, 4.0)
    assert (config.system.host, config.system.loop, config.dev.opening) == (
        "127.0.0.1",
        "auto",
        "",
    )


def test_sagas_of_a_service_have_places_and_a_queue(tmp_path: Path) -> None:
    """`[services.NAME.sagas]` bounds both; what is left out is as without it."""
    text = ONE + "[services.a.sagas]\nin_flight = 8\n"
    config = load_config(notes_app.write_config(tmp_path, text))
    assert saga_places_of(config, "a") == LimitOptions(8, 10_000)
    assert saga_places_of(config, "nobody") == LimitOptions(1024, 10_000)


def test_one_open_time_is_both_the_shortest_and_the_longest() -> None:
    """`open_for = "1s"` does not grow; "250ms..700ms" is the default."""
    default, fixed = BreakerSection().compile(), BreakerSection(open_for="1s").compile()
    assert (default.open_for_s, default.open_for_max_s) == pytest.approx((0.25, 0.7))
    assert (fixed.open_for_s, fixed.open_for_max_s) == (1.0, 1.0)


def test_what_is_left_out_of_a_policy_is_as_without_one() -> None:
    """An edge that has a section differs from the others in what is written there alone."""
    assert PolicySection().compile() == Policy()
    assert PolicySection().compile_balancer() == BalancerOptions()
    assert OperationSection().compile(Policy()) == OperationPolicy(is_timed_as_edge=True)
    assert BudgetSection().compile() == BudgetOptions()
    assert HedgeSection().compile() == HedgeOptions()


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ({"in_flight": 8}, LimitOptions(8, 0)),
        ({"waiting": 2}, AdaptiveLimitOptions(queue_max=2)),
        ({"least": 200}, AdaptiveLimitOptions(initial=200, limit_min=200)),
        ({"most": 16}, AdaptiveLimitOptions(initial=16, limit_max=16)),
    ],
)
def test_a_limit_is_fixed_or_finds_itself(
    words: dict[str, int], options: LimitOptions | AdaptiveLimitOptions
) -> None:
    """`in_flight` fixes it, `least` and `most` bound one that finds itself."""
    assert LimitSection(**words).compile() == options


def test_the_policies_of_a_caller_are_those_of_its_edges(tmp_path: Path) -> None:
    """Edges, single operations and balancers; an operation has what its edge has, else its own."""
    text = (
        EDGE.replace("a:a", "a:b")
        + 'timeout = "300ms"\nretry = { attempts = 2 }\nbudget = { ratio = 0.1, floor = 2.0 }\n'
        + 'balancer = "round_robin"\n'
        + '[policies."a:b".operations.quote]\nhedge = { after = "50ms", ratio = 0.1 }\n'
        + '[policies."a:b".operations.build]\ntimeout = "2s"\nretry = { attempts = 1 }\n'
        + '[policies."b:a"]\ntimeout = "9s"\n'
        + '[services.b]\napp = "b:b"\n'
    )
    policies = policies_of(load_config(notes_app.write_config(tmp_path, text)), "a")
    assert list(policies.edges) == ["b"]
    assert policies.edges["b"].budget == BudgetOptions(ratio=0.1, floor_per_s=2.0)
    assert policies.of_balancer("b").by == "round_robin"
    twice, once = RetryOptions(attempts_max=2), RetryOptions(attempts_max=1)
    assert policies.operations == {
        "b.quote": OperationPolicy(
            0.3, twice, HedgeOptions(after=0.05, ratio=0.1), is_timed_as_edge=True
        ),
        "b.build": OperationPolicy(2.0, once),
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[system\n", "is not valid TOML"),
        ('x = "\\q"', "is not valid TOML"),
        (ONE + "ports = 1", "unknown key 'services.a.ports'; did you mean 'port'?"),
        (
            ONE + "zzz = 1",
            "unknown key 'services.a.zzz'; known: app, port, pages_max, in_flight, waiting",
        ),
        (ONE + "[polices]", "unknown key 'polices'; did you mean 'policies'?"),
        (SYSTEM + 'nam = "y"\n', "unknown key 'system.nam'; did you mean 'name'?"),
        (
            ONE + '[policies."a:b"]\nbreaker = { open_far = "1s" }',
            "unknown key 'policies.a:b.breaker.open_far'; did you mean 'open_for'?",
        ),
        (ONE + "sagas = { in_flight = 0 }", "[services.a.sagas] in_flight is 0; make it 1 or more"),
        (ONE + "sagas = { queued = -1 }", "[services.a.sagas] queued is -1; make it 0 (none) or"),
        (ONE + 'port = "80"', "services.a.port: expected `int`, got `str`"),
        (ONE + "port = true", "services.a.port: expected `int`, got `bool`"),
        (SYSTEM + "services = 3", "unknown key 'system.services'; known: name, host"),
        ('services = 3\n[system]\nname = "x"', "services: expected `object`, got `int`"),
        ("[system]\n[services.a]\napp = 'a:a'", "system: key `name` is missing"),
        (SYSTEM + "[services.a]", "services.a: key `app` is missing"),
        ("[services.a]\napp = 'a:a'", "the section [system] is missing"),
        (SYSTEM, "the section [services] is missing"),
        (SYSTEM + "[services]", "names no service; add [services.NAME]"),
        (SYSTEM + "loop = 'trio'\n[services.a]\napp='a:a'", "system.loop: invalid enum value"),
        (SYSTEM + "[services.'../a']\napp='a:a'", "'../a' cannot name a service"),
        (ONE + "[external.'B C']\nurl = 'http://b'", "'B C' cannot name a service"),
        (ONE + "[external.a]\nurl = 'http://b'", "'a' is both a service and external"),
        (ONE + "port = 70000", "port 70000 is not one; use 1 to 65535, or 0 for any"),
        (ONE + "port = -1", "port -1 is not one"),
        (ONE + "port = 80\n[admin]\nport = 80", "port 80 is given twice"),
        (ONE + "port = 80\n[admin]\nports = { a = 80 }", "port 80 is given twice"),
        (ONE + "[admin]\nports = { b = 80 }", "ports names 'b', which is no process of this"),
        (ONE + "[admin]\nports = { 'a#2' = 80 }", "ports names 'a#2', which is no process"),
        (ONE + "port = 80\n[services.b]\napp = 'b:b'\nport = 80", "port 80 is given twice"),
        (
            SYSTEM + "hang = '900ms'\n[services.a]\napp='a:a'",
            "[system] hang is '900ms'; make it 1s",
        ),
        (SYSTEM + "hang = '1'\n[services.a]\napp='a:a'", "[system] hang: '1' is not a duration"),
        (
            SYSTEM + "[services.a]\napp='a:a'\n[retention]\nsagas = 'long'",
            "synchromesh.toml:6: [retention] sagas: 'long' is not a duration",
        ),
        (
            SYSTEM + '[services.a]\napp=\'a:a\'\n[retention]\nevents = {"a.b" = "1"}',
            "[retention] events.\"a.b\": '1' is not a duration",
        ),
        (ONE + "pages_max = -5", "[services.a] pages_max is -5; use 0 for no bound"),
        (ONE + "[admin]\ntls = true", "[admin] tls is by the certificate of this host, and [sys"),
        (ONE + "[external.b]", "[external.b] needs either url, urls, discover or command"),
        (
            ONE + "[telemetry]\notlp = 'collector:4318'",
            "synchromesh.toml:6: [telemetry] otlp = 'collector:4318'; use http://...",
        ),
        (
            ONE + "[telemetry]\notlp = 'http://me:secret@c'",
            "[telemetry] otlp = 'http://…@c'; it has a user or a password",
        ),
        (
            ONE + "[telemetry]\notlp = 'http://c:4317'",
            "port 4317 is that of gRPC, and this is sent by HTTP: use the collector's port",
        ),
        (
            ONE + "[telemetry]\notlp = 'http://c:4318/v1/traces'",
            "[telemetry] otlp = 'http://c:4318/v1/traces'; leave out /v1/...",
        ),
        (
            ONE + "[telemetry]\nmetrics_every = '0.5s'",
            "metrics_every = '0.5s'; make it 1s or more",
        ),
        (ONE + "[telemetry]\nmetrics_every = 'often'", "metrics_every"),
        (
            ONE + "[telemetry]\nsignals = ['spans']",
            "telemetry.signals[0]: invalid enum value 'spans'",
        ),
        (
            ONE + "[telemetry]\nheaders = { authorization = 'env:A' }",
            "[telemetry] has headers, which is of use with otlp alone; add it",
        ),
        (
            ONE + "[telemetry]\notlp = 'http://c'\nheaders = { Host = 'env:A' }",
            "'Host' cannot be a header here; use one in lower case",
        ),
        (
            ONE + "[telemetry]\notlp = 'http://c'\ntls = { ca = 'ca.pem' }",
            "[telemetry] has tls, which is of use at an https:// url alone",
        ),
        (
            ONE + "[telemetry]\notlp = 'http://c'\nresource = { 'service.name' = 'x' }",
            "'service.name' is not to be set; each service says it of itself",
        ),
        (ONE + "[telemetry]\nsample = 1.5", "[telemetry] sample = 1.5; make it a number from 0"),
        (ONE + "[telemetry]\nsample = nan", "[telemetry] sample = nan; make it a number from 0"),
        (ONE + "[telemetry]\nbaggage = ['a b']", "[telemetry] 'a b' is no key of baggage"),
        (
            ONE + f"[telemetry]\nbaggage = {[f'k{n}' for n in range(17)]}",
            "[telemetry] baggage has 17 keys; make it 16 or fewer",
        ),
        (
            ONE + "[external.b]\nurl = 'http://b'\ncommand = ['b']",
            "[external.b] needs either url, urls, discover or command",
        ),
        (ONE + "[external.b]\nurl = 'ftp://b'", "[external.b] url = 'ftp://b'; use http://..."),
        (ONE + "[external.b]\nurls = ['b']", "[external.b] urls = 'b'; use http://..."),
        (ONE + "[external.b]\nurls = ['']", "[external.b] urls = ''; use http://..."),
        (
            ONE + "[external.b]\nurl = 'http://u:hidden@b'",
            "synchromesh.toml:6: [external.b] url = 'http://…@b'; it has a user or a password",
        ),
        (
            ONE + "[external.b]\nurls = ['http://b', 'http://B/']",
            "[external.b] urls has 'http://b' twice; name each once",
        ),
        (
            ONE + "[external.b]\nurls = ['http://b', 'http://c']\nweights = [1, 1000001]",
            "[external.b] weights has 1000001; make each 1000000 or less",
        ),
        (
            ONE + "[external.b]\nurls = ['http://b', 'http://b']",
            "[external.b] urls has 'http://b' twice; name each once",
        ),
        (
            ONE + "[external.b]\nurls = ['http://b', 'http://c']\nweights = [1]",
            "[external.b] weights are 1 for 2 urls; give one for each",
        ),
        (
            ONE + "[external.b]\nurls = ['http://b', 'http://c']\nweights = [1, 0]",
            "[external.b] weights has 0; make each a whole number, 1 or more",
        ),
        (
            ONE + "[external.b]\nurl = 'http://b'\nhealth = { path = '/up' }",
            "[external.b] has health, which is of use with several urls alone",
        ),
        *(
            (ONE + f"[external.b]\ndiscover = {{ {discover} }}", f"[external.b] discover.{why}")
            for discover, why in (
                ("every = '1s'", "dns: discover needs either dns, srv or file, and has none"),
                ("dns = 'http://b', file = 'b'", "dns: discover needs either"),
                ("dns = 'b'", "dns: dns = 'b'; use http://..."),
                ("dns = 'https://b'", "dns: dns = 'https://b'; what is found so is reached by"),
                ("dns = 'http://_b._tcp.c'", "dns: dns = 'http://_b._tcp.c'; that is a name of"),
                ("srv = 'http://b'", "srv: srv = 'http://b'; write the name of SRV records"),
                ("srv = 'http://_b._tcp.c:80'", "srv: srv = 'http://_b._tcp.c:80'; SRV records"),
                ("file = 'b', every = '0'", "every: '0' is not a duration"),
            )
        ),
        (
            ONE + "[external.b]\ndiscover = { file = 'b' }\nhealth = {}",
            "[external.b] has health, which is of urls that are named",
        ),
        *(
            (
                ONE + f"[external.b]\nurls = ['http://b', 'http://c']\nhealth = {{ {health} }}",
                f"[external.b] health.{why}",
            )
            for health, why in (
                ("path = 'up'", "path: 'up' is no path"),
                ("path = '//up'", "path: '//up' is no path"),
                ("path = '/a/..'", "path: '/a/..' is no path"),
                ("path = '/%zz'", "path: '/%zz' is no path"),
                ("path = '/u p'", "path: '/u p' is no path"),
                ("every = 'often'", "every: 'often' is not a duration"),
                ("timeout = '3s'", "timeout: '3s' is longer than every = '2s'"),
                ("down_after = 0", "down_after: it is 0; make it 1 or more"),
            )
        ),
        (ONE + '[policies."a"]', '[policies."a"] is not an edge; expected "CALLER:CALLEE" of a'),
        (ONE + '[policies."a:c"]', '[policies."a:c"] is not an edge'),
        (
            ONE + "[external.b]\nurl = 'http://b'\n[policies.\"b:a\"]",
            '[policies."b:a"] is not an edge',
        ),
        (
            ONE + '[policies."a:a"]\ntimeout = "2"',
            ":6: [policies.\"a:a\"] timeout: '2' is not a duration; write a number",
        ),
        (EDGE + "timeout = 2", ':6: policies.a:a.timeout: expected a text such as "2s", got 2'),
        (EDGE + "retry = 4", "policies.a:a.retry: expected { attempts = 4 }"),
        (EDGE + "limit = 8", "policies.a:a.limit: expected { in_flight = 8 }"),
        (EDGE + "budget = 0.1", "policies.a:a.budget: expected { ratio = 0.1 }"),
        (EDGE + "breaker = true", 'policies.a:a.breaker: expected { window = "10s" }'),
        (
            EDGE + "[policies.'a:a'.operations.q]\ntimeout = 2",
            'operations.q.timeout: expected a text such as "2s", got 2',
        ),
        (
            EDGE + "[policies.'a:a'.operations.q]\nhedge = 'p90'",
            'operations.q.hedge: expected { after = "p90" }',
        ),
        (SYSTEM + "[services]\na = 'a:a'", 'services.a: expected { app = "a:a" }'),
        (SYSTEM + "[services]\na = 3", "services.a: expected a section with the keys: app, port"),
        (ONE + "[policies.a:b]", '; quote the edge: [policies."a:b"]'),
        (ONE + "[policies.a:b.operations.q]", '; quote the edge: [policies."a:b".operations.q]'),
        (
            EDGE + "timeout = '2s'\nretry = { attempts = 0 }",
            ':7: [policies."a:a"] retry.attempts = 0; make it 1 (no retry) or more',
        ),
        (EDGE + "budget = { ratio = -1 }", "] budget.ratio = -1; make it a number from 0 to 1"),
        (EDGE + "budget = { floor = nan }", "] budget.floor = nan; make it 0 or more"),
        (EDGE + "breaker = { failure_rate = 1.5 }", "] breaker.failure_rate = 1.5; make it a numb"),
        (EDGE + "breaker = { minimum_calls = 0 }", "] breaker.minimum_calls = 0; make it 1 or"),
        (EDGE + "breaker = { window = '10' }", "] breaker.window: '10' is not a duration"),
        (EDGE + "breaker = { ramp = '1' }", "] breaker.ramp: '1' is not a duration"),
        (
            EDGE + "breaker = { open_for = '700ms..250ms' }",
            "] breaker.open_for = '700ms..250ms'; make it the shortest and the longest time",
        ),
        (EDGE + "limit = { in_flight = 0 }", "in_flight = 0, which would send nothing; make it 1"),
        (EDGE + "limit = { in_flight = -1 }", "leave it out, and the limit finds itself"),
        (EDGE + "limit = { waiting = -4 }", "] limit.waiting = -4; make it 0 or more"),
        (EDGE + "limit = { in_flight = 1, waiting = -4 }", "make it 0 or more"),
        (EDGE + "limit = { least = 0 }", "least = 0, and most = 1000; make least 1 or more"),
        (EDGE + "limit = { least = 9, most = 8 }", "and most no less than that"),
        (EDGE + "limit = { in_flight = 8, most = 8 }", "leave out either"),
        (EDGE + "budget = { ratio = 1.5 }", "ratio = 1.5; make it a number from 0 to 1"),
        (EDGE + 'balancer = "fastest"', "'fastest'; make it 'peak_ewma' or 'round_robin'"),
        (EDGE + "breaker = { probes = 0 }", "] breaker.probes = 0; make it 1 or more"),
        (
            EDGE + "[policies.'a:a'.operations.q]\ntimeout = '2'",
            ":7: [policies.\"a:a\"] operations.q.timeout: '2' is not a dur",
        ),
        (
            EDGE + "[policies.'a:a'.operations.q]\nretry = { attempts = 0 }",
            "operations.q.retry.attempts = 0",
        ),
        (EDGE + "[policies.'a:a'.operations.q]\nlimit = {}", "known: timeout, retry, hedge"),
        (
            EDGE + "[policies.'a:a'.operations.q]\nhedge = { after = 'p50' }",
            'operations.q.hedge.after = \'p50\'; make it "p90", "p95", "p99" or a duration',
        ),
        (
            EDGE + "[policies.'a:a'.operations.q]\nhedge = { ratio = 2 }",
            "operations.q.hedge.ratio = 2; make it a number from 0",
        ),
        (
            EDGE + "[policies.'a:a'.operations.q]\nhedge = { ratio = 'x' }",
            "policies.a:a.operations.q.hedge.ratio: expected `float`, got `str`",
        ),
        (ONE + "in_flight = 0", "[services.a] in_flight is 0; make it 1 or more"),
        (ONE + "waiting = -1", "[services.a] waiting is -1; make it 0 or more"),
        (ONE + '[policies."a:a"]\nlimit = { at_once = 4 }', "unknown key 'policies.a:a.limit"),
        (ONE + '[policies."a:a"]\nbreaker = { open_for = "1s.." }', "or one for both"),
        (
            ONE + '[policies."a:a"]\nretry = { attempts = "3" }',
            "policies.a:a.retry.attempts: expected `int`, got `str`",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    """One message names the file, the place, and what would be right."""
    message = refused(tmp_path, text)
    assert said in message
    assert str(tmp_path / "synchromesh.toml") in message


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    """A folder without a configuration, and one that is no text, are said as such."""
    with pytest.raises(ConfigError, match="go to the folder of your system"):
        load_config(tmp_path)
    (tmp_path / "synchromesh.toml").mkdir()
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path)
    (tmp_path / "synchromesh.toml").rmdir()
    (tmp_path / "synchromesh.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        load_config(tmp_path)


def config_of(folder: Path, text: str) -> SystemConfig:
    """Read a configuration that is right in itself."""
    return load_config(notes_app.write_config(folder, text))


@pytest.mark.parametrize(
    ("app", "said"),
    [
        ("notes_app", 'expected "module:attribute"'),
        (":notes", 'expected "module:attribute"'),
        ("notes_app:", 'expected "module:attribute"'),
        ("no_such_app:a", "there is no module 'no_such_app' in"),
        ("notes_app.deeper:a", "there is no module 'notes_app.deeper'"),
        ("notes_app:nots", "module 'notes_app' has no 'nots'"),
        ("notes_app:not_a_service", "is not a Service"),
        ("notes_app:broken", "that service is named 'broken'; use the same name"),
        ("needs_more:a", "importing it failed: ModuleNotFoundError: No module named 'not_there'"),
        ("divides:a", "importing it failed: ZeroDivisionError: division by zero"),
        ("unparsed:a", "importing it failed: SyntaxError"),
        ("stands_for:notes", "external=True, calls of which carry no credential"),
    ],
)
def test_a_service_that_cannot_be_loaded_is_named(tmp_path: Path, app: str, said: str) -> None:
    """The message names the section, and where in the user's code an import failed."""
    (tmp_path / "needs_more.py").write_text("import not_there\n")
    (tmp_path / "divides.py").write_text("a = 1\nb = 1 / 0\n")
    (tmp_path / "unparsed.py").write_text("a = = 1\n")
    (tmp_path / "stands_for.py").write_text(
        "from typing import Protocol\n"
        "from synchromesh import Contract, Service, command\n"
        "class Theirs(Contract, Protocol, service='notes', version='1.0', external=True):\n"
        "    @command('POST /notes')\n"
        "    async def write(self, text: str) -> None: ...\n"
        "notes = Service('notes', implements=Theirs)\n"
    )
    config = config_of(tmp_path, SYSTEM + f'[services.notes]\napp = "{app}"\n')
    with pytest.raises(ConfigError) as caught:
        load_services(config, tmp_path)
    assert f"[services.notes] app = '{app}'" in caught.value.message
    assert said in caught.value.message
    if app == "divides:a":
        assert f"({tmp_path / 'divides.py'}, line 2)" in caught.value.message


def test_a_mistake_in_a_definition_keeps_its_own_words(tmp_path: Path) -> None:
    """What the toolkit itself says of a definition is not wrapped in an import's failure."""
    (tmp_path / "wrong_definition.py").write_text(
        "from synchromesh import Service\n"
        "a = Service('a')\n"
        "@a.saga(int, deadline='soon')\n"
        "async def late(s, n: int) -> None:\n"
        "    await s.id\n"
    )
    config = config_of(tmp_path, SYSTEM + '[services.a]\napp = "wrong_definition:a"\n')
    with pytest.raises(SynchromeshError, match="'soon' is not a duration"):
        load_services(config, tmp_path)


@pytest.mark.parametrize(
    ("opening", "said"),
    [
        ("notes_app:none_such", "has no 'none_such'"),
        ("notes_app:no_opening", "is not an async function; write async def"),
    ],
)
def test_an_opening_that_cannot_be_awaited_is_refused(
    tmp_path: Path, opening: str, said: str
) -> None:
    """The opening is checked before anything starts."""
    config = config_of(tmp_path, notes_app.TOML + f'[dev]\nopening = "{opening}"\n')
    with pytest.raises(ConfigError, match=said):
        load_opening(config, tmp_path)


def test_the_opening_is_optional(tmp_path: Path) -> None:
    """A system may begin with nothing, or with what a function does."""
    assert load_opening(config_of(tmp_path, notes_app.TOML), tmp_path) is None
    text = notes_app.TOML + '[dev]\nopening = "notes_app:opens"\n'
    assert load_opening(config_of(tmp_path, text), tmp_path) is notes_app.opens


def test_a_saga_may_not_outlive_the_inboxes() -> None:
    """Inboxes have to remember longer than a saga may still ask (S6)."""
    check_keep([notes_app.notes], 7 * 86_400.0)
    with pytest.raises(ConfigError, match=r"saga notes\.planned may take .*shorten its deadlines"):
        check_keep([notes_app.notes], 60.0)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ('sagas = "6d"', "callers may repeat the start of one for 604800 s; make it no shorter"),
        ('events = {"shop.sould" = "90d"}', "publishes 'shop.sould'; did you mean 'shop.sold'"),
        ('events = {"x" = "90d"}', "no service publishes 'x'; there are shop.sold"),
        ('events = {"shop.sold" = "90d"}', "'shop.sold' makes projection 'total', which could not"),
    ],
)
def test_what_may_not_be_forgotten_is_refused(tmp_path: Path, section: str, said: str) -> None:
    """A run whose start may be repeated, an unknown event, and one that a projection is made of."""
    config = config_of(tmp_path, f"{db_app.TOML}\n[retention]\n{section}\n")
    with pytest.raises(ConfigError) as caught:
        retention_of(config, [db_app.shop, db_app.books], 7 * 86_400.0)
    assert said in caught.value.message


def test_what_is_forgotten_is_configured(tmp_path: Path) -> None:
    """Sagas after a month by default, events never, unless they are named; "" is never, too."""
    month = retention_of(config_of(tmp_path, db_app.TOML), [db_app.shop], 7 * 86_400.0)
    assert (month.sagas_s, month.events_s) == (30 * 86_400.0, {})
    never = config_of(tmp_path, f'{db_app.TOML}\n[retention]\nsagas = ""\nlogs = ""\n')
    assert retention_of(never, [db_app.shop], 7 * 86_400.0).sagas_s is None
    assert never.retention.compile().logs_s is None
    told = retention_of(
        config_of(tmp_path, f'{db_app.TOML}\n[retention]\nevents = {{"shop.told" = "90d"}}\n'),
        [db_app.shop],
        7 * 86_400.0,
    )
    assert told.of(["shop.told"]).events_s == {"shop.told": 90 * 86_400.0}
    assert told.of(["books.told"]).events_s == {}


def test_the_loop_is_asyncios_own_by_default() -> None:
    """`loop = "asyncio"` needs nothing else."""
    loop = loop_factory("asyncio")()
    assert type(loop).__module__.startswith("asyncio.")
    loop.close()


def test_the_loop_is_the_best_one_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`loop = "auto"`, the default, is uvloop's where there is one, and asyncio's elsewhere."""
    loop = loop_factory("auto")()
    assert isinstance(loop, uvloop.Loop)
    loop.close()
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert loop_factory("auto") is asyncio.new_event_loop


def test_the_loop_is_uvloops_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """`loop = "uvloop"` is the same one; without the package it is an extra that is missing."""
    assert loop_factory("uvloop") is loop_factory("auto")
    monkeypatch.setitem(sys.modules, "uvloop", None)
    with pytest.raises(MissingExtra, match=r"pip install 'WHEEL\[fast\]'"):
        loop_factory("uvloop")


# -- the gateway -------------------------------------------------------------------------------


def test_a_gateway_may_have_policies_of_its_own(tmp_path: Path) -> None:
    """Where there is a gateway its edges are edges, and it has a port; else it is no caller."""
    edge = '[policies."gateway:a"]\ntimeout = "300ms"\n'
    text = ONE + '[gateway]\napp = "gateway:gateway"\nport = 8080\n' + edge
    config = load_config(notes_app.write_config(tmp_path, text))
    assert (config.gateway.app, config.gateway.port) == ("gateway:gateway", 8080)
    assert config.policies["gateway:a"].compile().timeout_s == 0.3
    assert "is not an edge" in refused(tmp_path, ONE + edge)


@pytest.mark.parametrize("section", ["services", "external"])
def test_nothing_else_is_named_as_the_gateway(tmp_path: Path, section: str) -> None:
    """An edge "gateway:a" says whose it is."""
    value = 'app = "a:a"' if section == "services" else 'url = "http://127.0.0.1:1"'
    gateway = '[gateway]\napp = "gateway:gateway"\n'
    message = refused(tmp_path, f"{ONE}[{section}.gateway]\n{value}\n{gateway}")
    assert "is the name of the gateway itself" in message


def test_a_wrong_proxy_is_named_with_its_place(tmp_path: Path) -> None:
    """Before anything listens; a right one is kept as it was written."""
    section = '[gateway]\napp = "gateway:gateway"\ntrusted_proxies = '
    message = refused(tmp_path, f'{ONE}{section}["10.0.0.7", "10.0.0.1/8", "0.0.0.0/0"]\n')
    assert "[gateway] trusted_proxies: '10.0.0.1/8' is no address" in message
    assert "trusts everybody" in message
    assert "synchromesh.toml" in message
    assert "trusted_proxies" in refused(tmp_path, f'{ONE}{section}"10.0.0.7"\n')
    message = refused(tmp_path, f'{ONE}{section}["10.0.0.7"]\n')
    assert "trusted_proxies needs forwarded_by beside it" in message
    assert "forwarded_by" in refused(tmp_path, f'{ONE}{section}["10.0.0.7"]\nforwarded_by = "x"\n')
    whole = f'{ONE}{section}["10.0.0.7"]\nforwarded_by = "forwarded"\n'
    config = load_config(notes_app.write_config(tmp_path, whole))
    assert config.gateway.trusted_proxies == ("10.0.0.7",)
    assert config.gateway.forwarded_by == "forwarded"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("connections = 0", "connections = 0; make it 1 to 1000000"),
        ("connections_per_client = -1", "connections_per_client = -1; make it 1 to 1024"),
        ("connections_per_client = 2000", "make it 1 to 1024, which is connections, or 0"),
        ("head_bytes = 100", "head_bytes = 100; make it 1024 to 1048576"),
        ("headers = 0", "headers = 0; make it 10 to 10000"),
        ('head = "soon"', "head: 'soon' is not a duration"),
        ('idle = "0s"', "idle: '0s' is not a duration"),
        ('write = "-1s"', "write: '-1s' is not a duration"),
        ('quiet = "0ms"', "quiet: '0ms' is not a duration"),
        ("slow = 1", "slow"),
    ],
)
def test_a_wrong_limit_of_clients_is_named_with_its_place(
    tmp_path: Path, line: str, message: str
) -> None:
    """Before anything listens: which key, what it is, and what it may be."""
    said = refused(tmp_path, f'{ONE}[gateway]\napp = "a:a"\n[gateway.clients]\n{line}\n')
    assert message in said
    assert "synchromesh.toml" in said
    assert "gateway.clients" in said


def test_limits_of_clients_are_those_of_the_server(tmp_path: Path) -> None:
    """Left out they are the server's own defaults."""
    section = """[gateway]
app = "a:a"
host = "0.0.0.0"
[gateway.clients]
connections = 5000
connections_per_client = 50
head = "3s"
body = "4s"
idle = "75s"
write = "200s"
quiet = "5m"
head_bytes = 8192
headers = 50
"""
    gateway = load_config(notes_app.write_config(tmp_path, ONE + section)).gateway
    assert gateway.host == "0.0.0.0"
    assert gateway.clients.compile() == Limits(
        connections_max=5000,
        client_connections_max=50,
        head_s=3.0,
        body_s=4.0,
        idle_s=75.0,
        write_s=200.0,
        write_most_s=200.0,
        head_bytes_max=8192,
        headers_max=50,
    )
    assert gateway.clients.compile_pool() == PoolLimits(quiet_s=300.0)
    plain = load_config(notes_app.write_config(tmp_path, ONE)).gateway.clients
    assert (plain.compile(), plain.compile_pool()) == (Limits(), PoolLimits())


@pytest.mark.parametrize(
    ("text", "share"), [("off", 0.0), ("on", 1.0), ("1%", 0.01), ("0.5%", 0.005), ("100%", 1.0)]
)
def test_the_access_log_is_off_on_or_a_share(tmp_path: Path, text: str, share: float) -> None:
    """A share is of what went well."""
    folder = notes_app.write_config(tmp_path, f'{ONE}[gateway]\naccess_log = "{text}"\n')
    assert load_config(folder).gateway.access_share() == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "yes", "0%", "101%", "-1%", "1", "1e3%", "nan%"])
def test_another_access_log_is_refused(tmp_path: Path, text: str) -> None:
    """With its line, and with what may stand there."""
    message = refused(tmp_path, f'{ONE}[gateway]\naccess_log = "{text}"\n')
    assert 'make it "off", "on", or a share such as "1%"' in message
    assert "[gateway] access_log = " in message


def test_the_port_of_the_gateway_is_its_own(tmp_path: Path) -> None:
    """Two servers at one port are refused before one of them cannot listen."""
    message = refused(tmp_path, ONE + "port = 8080\n[gateway]\nport = 8080\n")
    assert "port 8080 is given twice" in message


def test_a_gateway_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its definition is found as a service's is; what is none is named; none is none."""
    module = types.ModuleType("way_in")
    module.__dict__.update(gateway=Gateway(routes=[]), other=4711)
    monkeypatch.setitem(sys.modules, "way_in", module)

    def load(app: str) -> Gateway | None:
        text = f'{ONE}[gateway]\napp = "{app}"\n'
        return load_gateway(load_config(notes_app.write_config(tmp_path, text)), tmp_path)

    assert load("") is None
    assert load("way_in:gateway") is module.gateway
    with pytest.raises(ConfigError, match=r"\[gateway\] app = 'way_in:other' is not a Gateway"):
        load("way_in:other")
