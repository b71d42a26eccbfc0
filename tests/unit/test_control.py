"""The control socket of a running system: who may ask, what may be asked, what is answered."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol, cast

import msgspec
import pytest

from notes_app import TOML, Note, Running, write_config
from synchromesh import Contract, command, query
from synchromesh.context import CREDENTIAL
from synchromesh.errors import BadRequest, UnknownOperation
from synchromesh.system import RunInfo
from synchromesh.system.control.actions import Answers
from synchromesh.system.control.api import Control
from synchromesh.system.control.arguments import arguments_from_texts


class Answered(NamedTuple):
    status: int
    body: Any


class Asking:
    """Asks a control socket as any program could."""

    def __init__(self, info: RunInfo) -> None:
        self.info = info
        self.authority = info.control.removeprefix("http://")

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        token: str | None = None,
        host: str | None = None,
    ) -> Answered:
        """Send one request with the token of the system, or with another."""
        given = self.info.token if token is None else token
        headers = {"Host": host or self.authority, "Authorization": f"Bearer {given}"}
        if not given:
            del headers["Authorization"]
        connection = http.client.HTTPConnection(self.authority, timeout=10)
        data = body if isinstance(body, bytes) else json.dumps(body).encode() if body else None
        connection.request(method, path, body=data, headers=headers)
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        return Answered(response.status, json.loads(answer))

    def call(self, operation: str, **arguments: str) -> Answered:
        """Make a call by `POST /call`."""
        return self.ask("POST", "/call", {"operation": operation, "arguments": arguments})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a system."""
    return write_config(tmp_path_factory.mktemp("notebook"), TOML)


@pytest.fixture(scope="module")
def control(folder: Path) -> Iterator[Asking]:
    """A system that runs, with one note and one saga in it."""
    with Running(folder) as running:
        asking = Asking(running.system.info)
        assert asking.ask("GET", "/traces/last").body["detail"].startswith("nobody has asked")
        assert asking.ask("POST", "/actions/saga.list", {}).body["answers"] == {"notes": []}
        asking.call("notes.write", id="n1", text="hello")
        asking.call("notes.plan", name="p1")
        yield asking


@pytest.mark.parametrize("path", ["/status", "/nothing", "/"])
@pytest.mark.parametrize("token", ["", "wrong", "Bearer"])
def test_without_the_token_all_paths_are_alike(control: Asking, path: str, token: str) -> None:
    """401 says nothing of what there is."""
    answered = control.ask("GET", path, token=token)
    assert answered.status == 401
    assert answered.body["detail"] == "the control socket needs the token of run.json"
    assert control.info.token not in json.dumps(answered.body)


@pytest.mark.parametrize("host", ["evil.example", "localhost", "127.0.0.1"])
def test_another_name_than_its_own_is_refused(control: Asking, host: str) -> None:
    """A web page that has its name resolved to loopback gets nothing, token or not."""
    assert control.ask("GET", "/status", host=host).status == 401


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/nothing"),
        ("GET", "/call"),
        ("POST", "/status"),
        ("PUT", "/call"),
        ("GET", "/status/more"),
        ("POST", "/call/more"),
        ("POST", "/credentials/more"),
        ("POST", "/faults/cure"),
        ("GET", "/faults/heal"),
        ("DELETE", "/faults"),
    ],
)
def test_an_unknown_path_is_404(control: Asking, method: str, path: str) -> None:
    """What the socket does not have is said with its name."""
    answered = control.ask(method, path)
    assert answered.status == 404
    assert answered.body["detail"] == f"the control socket has no {method} {path}"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/call", b"{"),
        ("/call", b""),
        ("/call", {"operation": 3}),
        ("/call", {"operation": "notes.count", "more": 1}),
        ("/call", {"operation": "notes.count", "arguments": {"a": 1}}),
        ("/call", {"operation": "notes.count", "timeout_s": 0}),
        ("/call", {"operation": "notes.count", "timeout_s": 301}),
        ("/credentials", {"client": "", "service": "notes"}),
        ("/credentials", {"client": "notes", "service": "notes"}),
        ("/credentials", {"client": "shop"}),
        ("/credentials", {"name": "shop", "service": "notes"}),
        ("/faults", b""),
        ("/faults", {"errors": "100%"}),
        ("/faults", {"target": "notes", "error": "100%"}),
        ("/faults", {"target": "notes", "stall": "yes"}),
        ("/faults/heal", {"target": 1}),
        ("/breakers", b""),
        ("/breakers", {"target": "notes", "who": "ann"}),
        ("/breakers", {"target": "notes", "who": "ann", "why": " "}),
        ("/breakers", {"target": "notes", "who": "", "why": "to try"}),
        ("/breakers", {"target": "notse", "who": "ann", "why": "to try"}),
        ("/breakers", {"target": "notes#1", "who": "ann", "why": "to try"}),
        ("/breakers", {"target": "x:notes", "who": "ann", "why": "to try"}),
        ("/breakers/release", {"target": "notse", "who": "ann", "why": "to try"}),
    ],
)
def test_a_wrong_body_is_400(control: Asking, path: str, body: object) -> None:
    """Each body has one shape, and values within their bounds."""
    answered = control.ask("POST", path, body)
    assert (answered.status, answered.body["code"]) == (400, "bad_request")


def test_a_credential_is_for_a_service_that_there_is(control: Asking) -> None:
    """One that is not of the system is named, with those that are."""
    answered = control.ask("POST", "/credentials", {"client": "shop", "service": "nobody"})
    assert (answered.status, answered.body["code"]) == (404, "unknown_operation")
    assert answered.body["detail"] == "there is no service 'nobody'; there are notes"


def test_a_body_has_a_limit(control: Asking) -> None:
    """What would be too long is refused before it is sent."""
    connection = http.client.HTTPConnection(control.authority, timeout=10)
    connection.putrequest("POST", "/call")
    connection.putheader("Authorization", f"Bearer {control.info.token}")
    connection.putheader("Content-Length", str(10**9))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"limit": 0}, "limit is 0; use 1 to 10000"),
        ({"limit": 10_001}, "limit is 10001; use 1 to 10000"),
        ({"limit": "many"}, "Expected `int`, got `str`"),
        ({"status": "lost"}, "no saga status is 'lost'; known: queued, running"),
        ({"colour": "red"}, "colour"),
        (["list"], "Expected `object`"),
    ],
)
def test_a_request_that_does_not_fit_is_refused(control: Asking, wanted: object, said: str) -> None:
    """With what would be right."""
    answered = control.ask("POST", "/actions/saga.list", wanted)
    assert answered.status == 400
    assert said in answered.body["detail"]


def test_an_action_that_is_not_known_is_named(control: Asking) -> None:
    """With those that there are."""
    answered = control.ask("POST", "/actions/saga.sing", {})
    assert answered.status == 404
    assert "there is no action 'saga.sing'; there are " in (answered.body["detail"])


def test_a_call_is_answered_with_its_key_and_trace(control: Asking) -> None:
    """The answer leads to its trace; a query has no key."""
    wrote = control.call("notes.write", id="n2", text="there", stars="3").body
    counted = control.call("notes.count").body
    assert (wrote["problem"], counted["problem"]) == (None, None)
    assert wrote["result"] == counted["result"] >= 2
    assert wrote["key"]
    assert counted["key"] == ""
    spans = control.ask("GET", f"/traces/{wrote['trace_id']}").body["spans"]
    assert [span["kind"] for span in spans][:3] == ["client", "call", "handle"]
    first = control.ask("GET", f"/traces/{wrote['trace_id']}?first=2").body
    assert (first["spans"], first["has_more"]) == (spans[:2], True)
    last = control.ask("GET", "/traces/last").body
    assert last["trace_id"] == counted["trace_id"]
    for wrong in ("first=-1", "first=", "last=2", "first=1&first=2"):
        assert control.ask("GET", f"/traces/last?{wrong}").status == 400, wrong


def test_a_key_makes_a_command_happen_once(control: Asking) -> None:
    """The same key gets the same answer; with another input it is refused."""
    request = {"operation": "notes.write", "arguments": {"id": "n3", "text": "a"}, "key": "k3"}
    first = control.ask("POST", "/call", request).body
    again = control.ask("POST", "/call", request).body
    other = {**request, "arguments": {"id": "n4", "text": "b"}}
    assert first["result"] == again["result"]
    assert control.ask("POST", "/call", other).body["problem"]["code"] == "key_reused"


def test_a_refusal_is_an_answer_with_its_problem(control: Asking) -> None:
    """A business no has its code and status in `problem`."""
    answered = control.call("notes.write", id="n1", text="again")
    assert answered.status == 200
    problem = answered.body["problem"]
    assert (problem["code"], problem["status"]) == ("taken", 409)
    assert problem["details"] == {"name": "n1"}


def test_sagas_are_listed_and_shown(control: Asking) -> None:
    """The list has the newest first; a story has its lines."""
    told = control.ask("POST", "/actions/saga.list", {"status": "completed"}).body
    assert told["silent"] == []
    listed = told["answers"]["notes"]
    assert [(run["id"], run["service"]) for run in listed] == [("plan-p1", "notes")]
    story = control.ask("POST", "/actions/saga.show", {"id": "plan-p1"}).body["answers"]["notes"]
    assert story["status"] == "completed"
    assert [line["kind"] for line in story["lines"]] == ["done", "ended"]
    assert control.ask("POST", "/actions/saga.show", {"id": "none"}).status == 404


def test_the_status_says_how_each_service_is(control: Asking) -> None:
    """Health, sagas, parked messages and breakers of each service."""
    status = control.ask("GET", "/status").body
    notes = status["services"]["notes"]
    assert notes["health"]["is_healthy"] is True
    assert notes["health"]["is_draining"] is False
    assert (notes["sagas"], notes["parked"]) == ({"completed": 1}, 0)
    assert list(notes["behind"]) == ["projection/stars"]
    assert 0 <= notes["behind"]["projection/stars"] <= 4
    assert notes["sagas_since_start"]["started"] == 1
    assert status["spans_dropped"] == 0
    assert (status["system"], status["findings"]) == ("notebook", [])
    url = control.info.services["notes"]
    assert notes["instances"] == [{"instance": "notes#1", "url": url, "is_stale": False}]
    assert status["externals"] == {}
    breaker = status["clients"]["control"]["breakers"]["notes"]
    assert (breaker["name"], breaker["state"]) == ("control -> notes", "closed")
    assert breaker["in_state_s"] >= 0
    assert sorted(status["children"]) == ["code", "lease/notes", "readiness/notes", "registry"]
    assert status["faults"] == control.ask("GET", "/faults").body


@pytest.mark.parametrize("target", ["notes", "control:notes"])
def test_a_service_is_broken_and_healed(control: Asking, target: str) -> None:
    """Its calls fail until it is healed; the trace and the log say that it was on purpose."""
    struck = control.ask("GET", "/faults").body["struck"]
    broken = control.ask("POST", "/faults", {"target": target, "errors": "100%"})
    assert (broken.status, broken.body["left_s"], broken.body["struck"]) == (200, None, 0)
    answered = control.call("notes.count").body
    assert answered["problem"]["code"] == "remote_failed"
    assert f"100% errors at {target}" in answered["problem"]["detail"]
    spans = control.ask("GET", f"/traces/{answered['trace_id']}").body["spans"]
    assert [span["attributes"].get("fault") for span in spans if span["kind"] == "call"] == [
        f"100% errors at {target}"
    ]
    (fault,) = control.ask("GET", "/faults").body["in_force"]
    assert (fault["target"], fault["what"]) == (target, "100% errors")
    assert fault["struck"] == control.ask("GET", "/faults").body["struck"] - struck >= 1
    healed = control.ask("POST", "/faults/heal", {"target": target}).body
    assert [each["target"] for each in healed["healed"]] == [target]
    assert (
        healed["in_force"]
        == control.ask("POST", "/faults/heal", {"target": "all"}).body["healed"]
        == []
    )
    assert control.call("notes.count").body["problem"] is None


@pytest.mark.parametrize("target", ["notes", "control:notes"])
def test_an_edge_is_isolated_and_released(control: Asking, folder: Path, target: str) -> None:
    """Nothing is sent until it is released, however long that takes; status and log say who."""
    by = {"target": target, "who": "ann", "why": "notes is moved"}
    told = control.ask("POST", "/breakers", by)
    assert (told.status, told.body) == (200, {"isolated": [target], "released": []})
    problem = control.call("notes.count").body["problem"]
    assert (problem["code"], problem.get("retry_after_s")) == ("circuit_open", None)
    status = control.ask("GET", "/status").body
    (isolated,) = status["isolations"]
    assert (isolated["target"], isolated["who"], isolated["why"]) == (target, "ann", by["why"])
    assert status["clients"]["control"]["breakers"]["notes"]["state"] == "isolated"
    log = (folder / ".synchromesh/telemetry/log.jsonl").read_text()
    assert f"{target} is isolated by hand" in log
    assert by["why"] in log
    other = control.ask("POST", "/breakers/release", {**by, "target": "control:notes"})
    if target == "notes":
        assert other.status == 400
        assert "isolated for all its callers; release it: synchromesh break" in str(other.body)
        other = control.ask("POST", "/breakers/release", by)
    assert [each["target"] for each in other.body["released"]] == [target]
    assert other.body["isolated"] == control.ask("GET", "/status").body["isolations"] == []
    assert control.call("notes.count").body["problem"] is None
    assert control.ask("POST", "/breakers/release", by).body["released"] == []


def test_a_fault_has_all_its_words(control: Asking) -> None:
    """What it does and how long it lasts, in seconds and shares; the newest replaces the last."""
    wanted = {"target": "notes", "errors": "12.5%", "latency": "300ms", "stall": True}
    control.ask("POST", "/faults", {**wanted, "for": "1h"})
    told = control.ask("POST", "/faults", {**wanted, "for": "20s"}).body
    assert (told["what"], told["errors"]) == ("0.3 s late, 12.5% errors, stall", 0.125)
    assert (told["latency_s"], told["is_stall"], told["left_s"]) == (0.3, True, 20.0)
    healed = control.ask("POST", "/faults/heal", {"target": "all"}).body["healed"]
    assert [0 < each["left_s"] <= 20.0 for each in healed] == [True]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"target": "notse"}, "there is no service 'notse'; did you mean 'notes'?"),
        ({"target": "x"}, "there is no service 'x'; there are notes"),
        ({"target": ""}, "there is no service ''; there are notes"),
        ({"target": "contrl:notes"}, "no caller 'contrl' in 'contrl:notes'; did you mean 'control"),
        ({"target": "notes:note"}, "no service 'note' in 'notes:note'; did you mean 'notes'?"),
        ({"target": "notes:"}, "no service '' in 'notes:'; there are notes"),
        ({"target": "notes:control"}, "no service 'control' in 'notes:control'; there are notes"),
        ({"target": "notes"}, "a fault does nothing; give it errors, latency or a stall"),
        ({"target": "notes", "errors": "0%"}, "'0%' is not an error rate"),
        ({"target": "notes", "errors": "101%"}, "'101%' is not an error rate"),
        ({"target": "notes", "errors": "0.5"}, "'0.5' is not an error rate; write \"100%\""),
        ({"target": "notes", "latency": "300"}, "'300' is not a duration"),
        ({"target": "notes", "latency": "0s"}, "'0s' is not a duration"),
        ({"target": "notes", "stall": True, "for": "soon"}, "'soon' is not a duration"),
    ],
)
def test_a_fault_that_cannot_be_is_refused(
    control: Asking, wanted: dict[str, object], said: str
) -> None:
    """The message names what was wrong and what would be right; nothing is in force."""
    answered = control.ask("POST", "/faults", wanted)
    assert (answered.status, answered.body["code"]) == (400, "bad_request")
    assert said in answered.body["detail"]
    assert control.ask("GET", "/faults").body["in_force"] == []


@pytest.mark.parametrize("target", ["notse", "notes:x", "x:notes"])
def test_what_cannot_be_broken_cannot_be_healed(control: Asking, target: str) -> None:
    """An unknown name is refused; one that is not broken is nothing."""
    assert control.ask("POST", "/faults/heal", {"target": target}).status == 400
    assert control.ask("POST", "/faults/heal", {"target": "notes"}).body["healed"] == []


def test_a_client_gets_a_credential_that_the_services_take(control: Asking) -> None:
    """With it a program calls a service's own URL; without it the service refuses."""
    wanted = {"client": "shop", "service": "notes"}
    credential = control.ask("POST", "/credentials", wanted).body["credential"]
    url = control.info.services["notes"].removeprefix("http://")
    statuses = []
    for header in (credential, "forged"):
        connection = http.client.HTTPConnection(url, timeout=10)
        connection.request("GET", "/count", headers={CREDENTIAL: header})
        statuses.append(connection.getresponse().status)
        connection.close()
    assert statuses == [200, 401]


@pytest.mark.parametrize(
    "client",
    [
        "", "notes", "control", "a/b", "a@b", "a#1", "a:b", "a b", "a\n", "A", "-a", ".a", "é",
        "a" * 64,
    ],
)  # fmt: skip
def test_a_client_can_take_neither_a_foreign_name_nor_one_that_divides_keys(
    control: Asking, client: str
) -> None:
    """Keys are kept by their caller: a credential must not let one into another's (D3)."""
    answered = control.ask("POST", "/credentials", {"client": client, "service": "notes"})
    assert (answered.status, answered.body["code"]) == (400, "bad_request")
    assert "name" in answered.body["detail"]


@pytest.mark.parametrize("client", ["0", "web-shop_2.eu", "a" * 63])
def test_a_client_has_a_name_of_its_own(control: Asking, client: str) -> None:
    """Lower-case letters, digits and what joins them, up to 63."""
    assert control.ask("POST", "/credentials", {"client": client, "service": "notes"}).status == 200


NOTE = {"id": "1", "text": "a", "stars": 0}


def test_no_secret_is_written_down(control: Asking, folder: Path) -> None:
    """Neither the token, nor the key, nor a credential is in the log or among the spans."""
    wanted = {"client": "shop", "service": "notes"}
    credential = control.ask("POST", "/credentials", wanted).body["credential"]
    control.ask("GET", "/status", token="wrong-" + control.info.token)
    control.ask("GET", "/traces/last")  # which has the spans written
    rundir = folder / ".synchromesh"
    key = (rundir / "system.key").read_bytes()
    secrets = (control.info.token.encode(), credential.encode(), key, key.hex().encode())
    written = [path.read_bytes() for path in (rundir / "telemetry").iterdir()]
    written += [path.read_bytes() for path in (rundir / "data").iterdir()]
    assert any(b"notes.write" in data for data in written)
    assert not any(secret in data for secret in secrets for data in written)


class Shapes(Contract, Protocol, service="shapes", version="1.0"):
    @command("POST /one")
    async def one(self, note: Note) -> None: ...
    @command("POST /two")
    async def two(self, note: Note, times: int) -> None: ...
    @command("POST /many")
    async def many(self, names: list[str]) -> None: ...
    @query("GET /plain/{name}")
    async def plain(self, name: str, least: int = 0) -> int: ...


@pytest.mark.parametrize(
    ("operation", "texts", "arguments"),
    [
        (Shapes.one, {"id": "1", "text": "a"}, {"note": NOTE}),
        (Shapes.one, {"note": '{"id": "1", "text": "a"}'}, {"note": NOTE}),
        (Shapes.one, {"id": "1", "text": '["a"]'}, {"note": {**NOTE, "text": '["a"]'}}),
        (
            Shapes.two,
            {"note": '{"id": "1", "text": "a"}', "times": "2"},
            {"note": NOTE, "times": 2},
        ),
        (Shapes.many, {"names": '["a", "b"]'}, {"names": ["a", "b"]}),
        (Shapes.plain, {"name": "7", "least": "3"}, {"name": "7", "least": 3}),
    ],
)
def test_texts_become_arguments(operation: Any, texts: dict[str, str], arguments: Any) -> None:
    """Fields of one record are named directly; objects and lists are JSON; texts stay texts."""
    assert msgspec.json.decode(arguments_from_texts(operation, texts)) == arguments


@pytest.mark.parametrize(
    ("operation", "texts", "said"),
    [
        (Shapes.one, {}, "shapes.one: argument `id` is missing"),
        (Shapes.one, {"ids": "1"}, "has no argument 'ids'; it takes id, text, stars"),
        (
            Shapes.one,
            {"id": "1", "text": "a", "stars": "x"},
            "shapes.one.stars: expected `int`, got `str`",
        ),
        (Shapes.one, {"note": "{"}, "shapes.one.note: expected `object`, got `str`"),
        (Shapes.many, {"names": "a"}, "shapes.many.names: expected `array`, got `str`"),
        (Shapes.plain, {}, "shapes.plain: argument `name` is missing"),
        (Shapes.plain, {"sku": "1"}, "has no argument 'sku'; it takes name, least"),
    ],
)
def test_texts_that_do_not_fit_are_refused(
    operation: Any, texts: dict[str, str], said: str
) -> None:
    """The message names the argument and what was expected."""
    with pytest.raises(BadRequest) as caught:
        arguments_from_texts(operation, texts)
    assert said in caught.value.message


def test_services_listen_beside_the_control_socket(control: Asking, tmp_path: Path) -> None:
    """`host` is for services; the control socket is on loopback whatever it says."""
    place = write_config(tmp_path, TOML.replace('"notebook"', '"x"\nhost = "0.0.0.0"'))
    with Running(place) as running:
        info = running.system.info
    assert info.control.startswith("http://127.0.0.1:")
    assert info.services["notes"].startswith("http://0.0.0.0:")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("boks", "is called 'boks'; did you mean 'books'\\?$"),
        ("x", "is called 'x'; there are books, loans, gateway, bank, and the children"),
    ],
)
def test_what_is_not_there_is_told_with_each_name_once(name: str, said: str) -> None:
    """Services are named by their processes and by the system; the nearest one is told alone."""

    async def nothing(_: str) -> bool:
        return False

    async def main() -> None:
        services = {"books": None, "loans": None}
        deps = SimpleNamespace(services=services, tracer=lambda _: None, caller=lambda *_: None)
        part = SimpleNamespace(is_named=lambda _: False)
        process = SimpleNamespace(part=part, name="")
        remotes = dict.fromkeys(("books", "loans", "gateway"), process)
        local = SimpleNamespace(deps=deps, restart=nothing, externals={"bank": None})
        made = cast("Any", Control)(local, token="t", authority=lambda: "h", remotes=remotes)
        with pytest.raises(UnknownOperation, match=said):
            await made._of_process(SimpleNamespace(body=b"{}"), f"{name}/restart")

    asyncio.run(main())


def test_of_one_service_one_request_restarts_at_a_time() -> None:
    """A second one, for one of its instances, is refused before anything has left the list."""
    began: list[str] = []

    class Process:
        def __init__(self, name: str, leave: asyncio.Event) -> None:
            self.name, self.part, self._leave = name, self, leave

        def is_named(self, name: str) -> bool:
            return name in (self.name, self.name.partition("#")[0])

        async def restart(self) -> int:
            began.append(self.name)
            await self._leave.wait()
            return 7

    async def main() -> None:
        leave = asyncio.Event()
        deps = SimpleNamespace(services={}, tracer=lambda _: None, caller=lambda *_: None)
        remotes = {name: Process(name, leave) for name in ("quoting#1", "quoting#2")}
        made = cast("Any", Control)(
            SimpleNamespace(deps=deps, note=lambda *_: None),
            token="t",
            authority=lambda: "h",
            remotes=remotes,
        )
        request = SimpleNamespace(body=b"{}")
        first = asyncio.create_task(made._of_process(request, "quoting/restart"))
        await asyncio.sleep(0)
        with pytest.raises(BadRequest, match="'quoting' is being restarted for another request"):
            await made._of_process(request, "quoting#2/restart")
        assert began == ["quoting#1"]
        leave.set()
        assert (await first)["pids"] == {"quoting#1": 7, "quoting#2": 7}
        assert (await made._of_process(request, "quoting#2/restart"))["pids"] == {"quoting#2": 7}

    asyncio.run(main())


def test_a_subscriber_is_not_gone_while_a_process_of_another_release_declares_it() -> None:
    """What the one that answers was started with is older, perhaps."""
    asked: list[str] = []

    async def act(*_: object) -> Answers:
        asked.append("shop")
        return Answers({"shop": {}})

    book = SimpleNamespace(taken=lambda known: {"stock": frozenset({"shop.sold", "books.closed"})})
    deps = SimpleNamespace(
        services={}, subscribers=dict, tracer=lambda _: None, caller=lambda *_: None
    )
    made = cast("Any", Control)(
        SimpleNamespace(deps=deps, act=act), token="t", authority=lambda: "h", remotes={}, book=book
    )

    def forget(subscriber: str) -> object:
        body = json.dumps({"subscriber": subscriber, "who": "ada", "why": "gone"}).encode()
        return asyncio.run(made._act(SimpleNamespace(body=body, query=""), "messages.forget"))

    with pytest.raises(BadRequest, match="that it takes events of books and of shop; nothing was"):
        forget("stock")
    assert asked == []
    forget("till")
    assert asked == ["shop"]
