"""A gateway compiled for Envoy: which route is whose, and what is refused before it is written."""

from __future__ import annotations

import json
import re
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certificates import issue
from cli_runs import Run, runner
from envoy_world import envoy_binary
from notes_app import TOML, Notes, write_config
from synchromesh import JWT, ApiKeys, Forward, Gateway, Policy, Rate, Route
from synchromesh.calls import Policies
from synchromesh.calls.routes import Match, Routes
from synchromesh.discovery import BalancerOptions
from synchromesh.gateway import Cors, Mirror, Split
from synchromesh.gateway.checking import compiled
from synchromesh.gateway.compiled import CompiledRoute
from synchromesh.gateway.envoy import (
    DIFFERENCES,
    EnvoySettings,
    Export,
    HostPort,
    RoutePlan,
    Upstream,
    export,
)
from synchromesh.gateway.envoy.filters import bucket_of
from synchromesh.gateway.envoy.patterns import ODD_PATH, all_but, closeness, path_pattern
from synchromesh.gateway.envoy.plan import KNOWN, plan
from synchromesh.gateway.forward import CompiledForward
from synchromesh.gateway.principal import Authenticator, Folders
from synchromesh.gateway.router import Template, find
from synchromesh.resilience import RetryOptions
from synchromesh.runtime import Runtime
from synchromesh.system.config.envoy_export import EdsFiles, Whereabouts, write
from synchromesh.system.config.reading import load_config
from synchromesh.tls import ClientFiles

DOCS = Path(__file__).parents[2] / "docs"
TOKENS = JWT(issuer="https://id.a", audience="api", jwks="https://id.a/keys")
PUBLIC = Forward("ANY /app/{path...}", to="legacy", path="/{path...}", public=True)
LEGACY = {"legacy": Upstream("legacy", [HostPort("10.0.0.7", 8080)])}


class Badges:
    """A kind of credential that the export has never heard of."""

    def open(self, folders: Folders, runtime: Runtime) -> Authenticator:
        raise AssertionError("nothing is opened here")


def planned(*routes: Any, auth: Any = (), upstreams: Mapping[str, Upstream] = LEGACY) -> RoutePlan:
    """Return whose the first route is."""
    gateway = Gateway(auth=auth, routes=list(routes))
    whys = {name: each.why for name, each in upstreams.items()}
    return plan(gateway, compiled(gateway), whys)[0]


def exported(gateway: Gateway, folder: Path, **more: Any) -> Export:
    options = {"name": "shop", "folder": folder, "system": folder, "upstreams": LEGACY, **more}
    return export(gateway, compiled(gateway), EnvoySettings(**options))


# -- whose a route is ------------------------------------------------------------------------------


def guarded(*auth: Any, **more: Any) -> RoutePlan:
    return planned(Forward("GET /x/{name}", to="legacy", scopes={"a"}, **more), auth=auth)


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (lambda: planned(Route("GET /count", Notes.count, public=True)), "calls a contract"),
        (lambda: planned(Forward("GET /x", to="notes", public=True)), "a service of the system"),
        (lambda: guarded(TOKENS, principal=True), "tells the upstream who asks"),
        (lambda: guarded(ApiKeys()), "the gateway alone can check it (ApiKeys)"),
        (
            lambda: guarded(ApiKeys(), TOKENS, by={"key"}),
            "takes no token, but a credential of this",
        ),
        (lambda: guarded(Badges()), "the gateway alone can check it (Badges)"),
        (lambda: guarded(Badges(), TOKENS), "Badges is asked before it"),
        (lambda: guarded(replace(TOKENS, jwks="keys.json")), "its keys are in a file"),
        (lambda: guarded(replace(TOKENS, jwks="")), "OpenID Connect Discovery"),
        (lambda: guarded(replace(TOKENS, grants=lambda _: ())), "its grants are a function"),
        (lambda: planned(replace(PUBLIC, mirror=Mirror("legacy2"))), "the answers compared"),
        (
            lambda: planned(replace(PUBLIC, split=Split("b", percent=5, sticky=True))),
            "sends each client to the same upstream",
        ),
        (
            lambda: planned(replace(PUBLIC, split=Split("notes", percent=5))),
            "leads to notes, a service of the system",
        ),
        (
            lambda: planned(PUBLIC, upstreams={"legacy": Upstream("legacy", why="is odd")}),
            "leads to legacy, which is odd",
        ),
    ],
)
def test_a_route_stays_at_the_gateway_for_a_reason(found: Any, why: str) -> None:
    """What Envoy cannot do is the gateway's, and the plan says why."""
    plan_of = found()
    assert plan_of.engine == "gateway"
    assert why in plan_of.why


@pytest.mark.parametrize("auth", [[TOKENS], [ApiKeys(), TOKENS]])
def test_envoy_has_what_it_can_answer(auth: list[Any]) -> None:
    """With what goes on to the gateway all the same."""
    assert planned(PUBLIC).engine == "envoy"
    found = guarded(*auth, websocket=True)
    assert (found.engine, found.upstreams, found.why) == ("envoy", ("legacy",), "")
    assert found.on[0] == "a request without a token, or with one that Envoy is not sure of"
    assert found.on[1:] == ("a WebSocket", "a body of more than 1048576 bytes, which is 413")


def test_one_of_two_issuers_is_left_to_the_gateway() -> None:
    """Each for itself, and the plan says whose tokens go on."""
    found = guarded(replace(TOKENS, issuer="https://id.b", prefix="b:", jwks="f"), TOKENS)
    assert found.engine == "envoy"
    assert found.on[1].startswith("a token of https://id.b: its keys are in a file")


@pytest.mark.parametrize(
    ("kind", "cls"),
    [("gateway", Gateway), ("route", CompiledRoute), ("forward", CompiledForward), ("token", JWT)],
)
def test_what_the_export_knows_is_there(kind: str, cls: type) -> None:
    """What it does not know of keeps a route at the gateway: a name that is gone would hide one."""
    assert KNOWN[kind] <= {each.name for each in fields(cls)}


def test_what_was_added_later_is_not_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A route that says what the export does not know of stays, and the plan names it."""
    monkeypatch.setitem(KNOWN, "forward", KNOWN["forward"] - {"quiet_s"})
    assert planned(PUBLIC).engine == "envoy"
    found = planned(replace(PUBLIC, websocket=True))
    assert found.engine == "gateway"
    assert found.why == "has quiet_s, which the export does not know of"


def test_bounds_of_what_is_kept_concern_no_route_of_envoy() -> None:
    """Answers are kept for routes that stay at the gateway."""
    gateway = Gateway(routes=[PUBLIC], cache_max=5, cache_bytes_max=1000, stale_max=5)
    assert plan(gateway, compiled(gateway), {"legacy": ""})[0].engine == "envoy"


# -- patterns --------------------------------------------------------------------------------------

NAMES = st.text("ab-:", min_size=1, max_size=5)


@given(st.sets(NAMES.filter(lambda name: ":" not in name), max_size=6), NAMES)
def test_all_but_some_names(names: set[str], other: str) -> None:
    """A complement without lookahead: every other name, and none of a pseudo header."""
    is_matched = re.fullmatch(all_but(names), other) is not None
    assert is_matched == (other not in names and not other.startswith(":"))


@pytest.mark.parametrize(
    ("path", "is_odd"),
    [
        ("/", False), ("/a/b.c/d~e", False), ("/a/...", False), ("/.a/b", False), ("/a.", False),
        ("/a/", False), ("/a=b,c@d:e!$&'()*+", False), ("/a/.", True), ("/a/..", True),
        ("/../a", True), ("/./a", True), ("//a", True), ("/a//", True), ("/a%2F", True),
        ("/a;b", True), ("/a\\b", True), ("/ä", True), ("/a b", True), ("*", True), ("", True),
    ],
)  # fmt: skip
def test_odd_paths(path: str, is_odd: bool) -> None:
    """Whatever servers read in more than one way is odd."""
    assert (re.fullmatch(ODD_PATH, path) is not None or not path) == is_odd


TEMPLATES = [
    Template.of(f"{method} {path}")
    for path in ("/a/{x...}", "/{x}/b", "/a/b/{y}", "/a/b/c", "/{x}/{y}/{z...}", "/a/b")
    for method in ("GET", "ANY")
]


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4), st.sampled_from(("GET", "PUT")))
def test_the_first_that_matches_is_the_closest(steps: list[str], method: str) -> None:
    """Envoy takes the first of a list; the list has the order of the router."""
    routes: Routes[Template] = Routes(has_empty_places=False)
    for each in TEMPLATES:
        routes.add(each.method, each.path, each)
    path = "/" + "/".join(steps)
    found = find(routes, method, path)
    first = next(
        (
            each
            for each in sorted(TEMPLATES, key=closeness)
            if each.method in (method, "ANY") and re.fullmatch(path_pattern(each.path), path)
        ),
        None,
    )
    assert first == (found.target if isinstance(found, Match) else None)


@pytest.mark.parametrize(
    ("rate", "tokens", "interval"),
    [
        (Rate("1/m", burst=2), (2, 1), "60s"), (Rate("20/s", burst=40), (40, 1), "0.050s"),
        (Rate("1000/s"), (1000, 50), "0.050s"), (Rate("3/s", burst=1), (1, 1), "0.333s"),
    ],
)  # fmt: skip
def test_rates_as_envoy_takes_them(rate: Rate, tokens: tuple[int, int], interval: str) -> None:
    """It refuses what is filled more often than each 50 ms."""
    entry = compiled(Gateway(routes=[replace(PUBLIC, rate=rate)]))[0]
    bucket = bucket_of(entry)
    assert (bucket["max_tokens"], bucket["tokens_per_fill"]) == tokens
    assert bucket["fill_interval"] == interval


# -- the whole -------------------------------------------------------------------------------------


def test_envoy_takes_the_whole_of_it(tmp_path: Path) -> None:
    """`envoy --mode validate`, of a gateway with everything that is compiled."""
    authority, own = issue(tmp_path, "authority"), issue(tmp_path, "own")
    shop = Cors(origins={"https://shop.example"}, credentials=True)
    tokens = replace(
        TOKENS, scopes_claim=("scope", "realm_access.roles"), typ="at+jwt", required=("azp",),
        audience=("api", "web"), leeway_s=5,
    )  # fmt: skip
    gateway = Gateway(
        auth=[ApiKeys(), tokens, JWT(issuer="http://127.0.0.1", prefix="b:", audience="api",
                                     jwks="http://127.0.0.1:1/keys")],
        cors=shop,
        routes=[
            PUBLIC,
            Forward("GET /a/{x}/{y}", to="named", path="/b/{y}/{x}", forwarded=True, public=True,
                    websocket=True, encoded_slashes=True, cors=Cors(origins={"*"})),
            Forward("PUT /a.b/{x}", to="several", scopes={"a", "b"}, body_max="0B",
                    rate=Rate("1000/s")),
        ],
    )  # fmt: skip
    upstreams = {
        **LEGACY,
        "named": Upstream("named", [HostPort("a.example", 443, is_tls=True)],
                          tls=ClientFiles(authority.pem, own.pem, own.key)),
        "several": Upstream("several", [HostPort("10.0.0.7", 80, weight=9), HostPort("::1", 80)],
                            is_weighted=True),
    }  # fmt: skip
    policies = Policies(
        edges={"legacy": Policy(retry=RetryOptions(attempts_max=1), budget=None, breaker=None)},
        balancers={"legacy": BalancerOptions(by="round_robin", outliers=None)},
    )
    made = exported(
        gateway, tmp_path, certificate=own.pem, key=own.key, upstreams=upstreams, policies=policies
    )
    assert {each.engine for each in made.routes} == {"envoy"}
    written = write(made, tmp_path, {})
    assert {path.name for path in written} == {
        "legacy.json", "several.json", "gateway.json", "listener.json", "envoy.json", "report.json",
    }  # fmt: skip
    assert is_valid(tmp_path / "envoy.json")


def is_valid(path: Path) -> bool:
    """Tell whether Envoy takes a configuration; what else it says is of its surroundings."""
    command = [str(envoy_binary()), "--mode", "validate", "-l", "error", "-c", str(path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return ran.returncode == 0 and f"configuration '{path}' OK" in ran.stdout + ran.stderr


def test_a_split_is_a_share_of_a_million(tmp_path: Path) -> None:
    """Drawn by Envoy, before the route's own upstream; both clusters are there."""
    routes = [replace(PUBLIC, split=Split("other", percent=0.25, path="/b/{path...}"))]
    upstreams = {**LEGACY, "other": Upstream("other", [HostPort("10.0.0.8", 80)])}
    made = exported(Gateway(routes=routes), tmp_path, upstreams=upstreams)
    direct = ways_to_upstreams(made)
    clusters = [each["route"]["cluster"] for each in direct]
    assert clusters == ["external.other"] * 3 + ["external.legacy"] * 3
    drawn = [each["match"].get("runtime_fraction") for each in direct]
    assert drawn[3:] == [None] * 3
    share = {"default_value": {"numerator": 2500, "denominator": "MILLION"}}
    assert drawn[:3] == [share] * 3
    write(made, tmp_path, {})
    assert is_valid(tmp_path / "envoy.json")


def ways_to_upstreams(made: Export) -> list[dict[str, Any]]:
    """Return the routes that do not lead to the gateway."""
    listener = made.bootstrap["static_resources"]["listeners"][0]
    chain = listener["filter_chains"][0]["filters"][0]["typed_config"]
    routes = chain["route_config"]["virtual_hosts"][0]["routes"]
    return [each for each in routes if each["route"]["cluster"] != "gateway"]


def test_a_guarded_route_is_taken_with_metadata_alone(tmp_path: Path) -> None:
    """No way to the upstream of a guarded route is open without a verified token (G1)."""
    routes = [Forward("GET /x/{name}", to="legacy", scopes={"a"}), PUBLIC]
    made = exported(Gateway(auth=[TOKENS], routes=routes), tmp_path)
    direct = ways_to_upstreams(made)
    ways = [each for each in direct if each["name"] == "GET /x/{name}"]
    assert ways
    for each in ways:
        said = each["match"]["dynamic_metadata"]
        names = {tuple(step["key"] for step in part["path"][1:]) for part in said}
        assert names >= {("iss",), ("aud",), ("alg",), ("typ",), ("sub",), ("scope",), ("crit",)}
        assert {part["filter"] for part in said} == {"envoy.filters.http.jwt_authn"}


# -- the verb --------------------------------------------------------------------------------------

APP = """
from notes_app import Notes
from synchromesh import Forward, Gateway, Route

doors = Gateway(
    routes=[
        Forward("ANY /app/{path...}", to="legacy", path="/{path...}", public=True),
        Forward("GET /base/{name}", to="below", public=True),
        Route("GET /count", Notes.count, public=True),
    ]
)
"""
CONFIG = (
    TOML
    + """
[gateway]
app = "envoy_cli_doors:doors"
port = 8000
trusted_proxies = ["127.0.0.1"]
forwarded_by = "x-forwarded"

[external.legacy]
urls = ["http://10.0.0.7:8080", "http://10.0.0.8:8080"]
weights = [9, 1]

[external.below]
url = "http://10.0.0.9/base"
"""
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "envoy_cli_doors.py").write_text(APP)
    write_config(tmp_path, CONFIG)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


def test_the_verb_writes_and_tells(folder: Path, run: Run) -> None:
    """Private files that Envoy takes, and the same report in a file, as JSON and on the screen."""
    ran = run(folder, "export", "envoy", str(folder / "out"), "--listen", "0.0.0.0:8443", "--json")
    assert (ran.code, ran.err) == (0, "")
    told = json.loads(ran.out)
    assert [each["engine"] for each in told["routes"]] == ["envoy", "gateway", "gateway"]
    assert "has a path in its url" in told["routes"][1]["why"]
    assert told["follows"] == ["legacy"]
    assert json.loads((folder / "out" / "report.json").read_text()) == told
    files = [path for path in (folder / "out").rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert {stat.S_IMODE(path.parent.stat().st_mode) for path in files} == {0o700}
    hosts = json.loads((folder / "out/eds/legacy.json").read_text())["resources"][0]["endpoints"][0]
    assert [
        (each["endpoint"]["address"]["socket_address"]["address"], each["load_balancing_weight"])
        for each in hosts["lb_endpoints"]
    ] == [("10.0.0.7", 9), ("10.0.0.8", 1)]
    assert is_valid(folder / "out" / "envoy.json")
    assert told["unplaced"] == []
    shown = run(folder, "export", "envoy", str(folder / "out"), "--set", "gateway.port=0")
    assert shown.code == 0
    assert shown.err == (
        "no address is known of gateway: start the system, and export again or with --follow\n"
    )
    assert "GET /count" in shown.out
    assert "start it by: envoy -c" in shown.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--listen", "8443"], "--listen '8443' is no address and port"),
        (["--listen", "shop.example:8443"], "is no address and port"),
        (["--listen", "127.0.0.1:0"], "is no address and port"),
        (["--certificate", "a.pem"], "--certificate and --key go together"),
        (["--certificate", "a.pem", "--key", "b.pem"], "a.pem"),
        (["--set", "gateway.trusted_proxies=[]"], "trusted_proxies is empty"),
        (["--set", "gateway.forwarded_by=forwarded"], "Envoy reads X-Forwarded-For alone"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(
    folder: Path, run: Run, words: list[str], told: str
) -> None:
    """With what would be right."""
    ran = run(folder, "export", "envoy", str(folder / "out"), *words)
    assert ran.code == 2
    assert told in ran.err
    assert not (folder / "out").exists()


def test_tls_of_the_gateway_and_a_long_name_are_refused(folder: Path, run: Run) -> None:
    """Envoy ends TLS, and its socket has a name that is short enough."""
    own = issue(folder, "own")
    config = CONFIG + f'\n[gateway.tls]\ncertificate = "{own.pem}"\nkey = "{own.key}"\n'
    write_config(folder, config)
    ran = run(folder, "export", "envoy", str(folder / ("o" * 90)))
    assert ran.code == 2
    assert "Envoy ends TLS before the gateway" in ran.err
    assert "which a socket's name may not be" in ran.err


def test_certificates_of_clients_are_refused_once(folder: Path, run: Run) -> None:
    """With TLS at the gateway or without it: what to do is the same, and said alone."""
    own = issue(folder, "own")
    files = f'certificate = "{own.pem}"\nkey = "{own.key}"\nclient_ca = "{own.pem}"\n'
    app = "from synchromesh.gateway import Certificates\n" + APP.replace(
        "routes=[", "auth=[Certificates()],\n    routes=["
    )
    (folder / "envoy_cli_partners.py").write_text(app)
    config = CONFIG.replace("envoy_cli_doors", "envoy_cli_partners")
    for more in ("", f"\n[gateway.tls]\n{files}"):
        write_config(folder, config + more)
        ran = run(folder, "export", "envoy", str(folder / "out"))
        assert ran.code == 2
        assert "mistakes: 1\n  Certificates: Envoy ends TLS, and no certificate" in ran.err


def test_a_folder_that_cannot_be_made(folder: Path, run: Run) -> None:
    """A file stands where it would be."""
    (folder / "out").write_text("")
    ran = run(folder, "export", "envoy", str(folder / "out"))
    assert ran.code == 2
    assert "out" in ran.err


def test_what_is_known_is_not_taken_away(folder: Path) -> None:
    """Files follow what is listed; where nobody is, the last that was good stays (R4, R5)."""
    config = load_config(folder)
    gateway = Gateway(routes=[PUBLIC])
    upstreams = {"legacy": Upstream("legacy", [HostPort("10.0.0.7", 8080)])}
    made = exported(gateway, folder / "out", upstreams=upstreams)
    write(made, folder / "out", {})
    path = folder / "out/eds/legacy.json"
    files = EdsFiles(made, config, folder / "out")

    def hosts() -> list[str]:
        found = json.loads(path.read_text())["resources"][0]["endpoints"][0]["lb_endpoints"]
        return [each["endpoint"]["hostname"] for each in found]

    there = Whereabouts("http://0.0.0.0:8000", {"legacy": ["http://10.0.0.8:8080"]})
    assert files.follow(there) == ("gateway", "legacy")
    assert hosts() == ["10.0.0.8:8080"]
    before = path.stat().st_ino
    assert files.follow(there) == ()
    assert files.follow(Whereabouts()) == ()
    assert (path.stat().st_ino, hosts()) == (before, ["10.0.0.8:8080"])
    moved = replace(there, externals={"legacy": ["http://10.0.0.7:8080", "http://10.0.0.8:8080"]})
    assert files.follow(moved) == ("legacy",)
    # Another file in its place: Envoy sees no other change.
    assert path.stat().st_ino != before
    gate = json.loads((folder / "out/eds/gateway.json").read_text())["resources"][0]
    place = gate["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]
    assert place == {"address": "127.0.0.1", "port_value": 8000}


def test_the_differences_are_in_the_docs() -> None:
    """The table says what the export says."""
    page = (DOCS / "envoy-in-front.md").read_text()
    for each in DIFFERENCES:
        assert f"| {each.what} | {each.gateway} | {each.envoy} |" in page
