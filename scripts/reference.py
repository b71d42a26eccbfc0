"""Write the pages below docs/reference/ from docstrings and from the schema: `make reference`."""

from __future__ import annotations

import ast
import functools
import inspect
import typing
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import msgspec

import synchromesh
import synchromesh.personal
import synchromesh.testing
from scripts.docstrings import entry, markdown_of
from synchromesh.advisor import CODES
from synchromesh.cli.guide import GUIDE
from synchromesh.errors import error_table
from synchromesh.system import SystemConfig
from synchromesh.system.config.layers import Secret, SecretUrl

DOCS = Path(__file__).parents[1] / "docs"
MADE = "<!-- Made by scripts/reference.py: edit the docstrings, then run `make reference`. -->"
UP = "../"

API_INTRO = """\
What users write every day is imported from `synchromesh`. Each name has its signature, its contract
and an example, which is run. What is imported from the packages of single patterns is on a [page of
its own](modules.md), and so is [`synchromesh.testing`](testing.md)."""
MODULES_INTRO = """\
Each pattern is a package of its own. These are the names that users import from them; most services
need none but those of [`synchromesh`](api.md) itself."""
GUIDE_INTRO = """\
Begin with what you see. The command shows whether it is that; the pattern is what mends it, and
the change is the first step, which is worth something alone. `synchromesh guide` prints the same,
and `synchromesh guide charged twice` what has all of these words.

Most systems need few of these patterns. [When not to use it](when-not.md) says when none, and
[Compared](compared.md) when another tool is the better one."""
ADVICE_INTRO = """\
The codes that [`synchromesh advise`](advise.md) gives, in its order. A code stays as it is."""
FILE_INTRO = """\
Every key of the file, with its type, its default and what it means. A key that is not known or has
a wrong type is refused, with its place, before anything listens. The same keys are set by variables
and flags: see [layers](../system.md#layers). `synchromesh config explain` shows every value in
force, `synchromesh config check` what is wrong.

Durations are texts such as `"300ms"`, `"2s"`, `"10m"`."""

# The front door in the order in which people meet it.
FRONT_DOOR = {
    "Contracts": "Contract command query event PublicEvent Call",
    "Services": "Service Context Transaction Migration",
    "Sagas": "Saga",
    "Event sourcing": "Decider Decision",
    "Resilience": "Policy deadline",
    "API gateway": "Gateway Route Aggregate Branch Forward ApiKeys JWT Rate Stale Static",
    "Calls from outside": "Client SyncClient",
    "Errors": "SynchromeshError CallError NotExecuted TimedOut Rejection",
}
# Names of types, with what they stand for.
ALIASES = {"Personal": "Personal[T]  # T | Erased", "Subject": "Subject  # str"}
# What else users import, by package: the documentation's code and servo-works do.
MODULES = {
    "alone": (
        "Alone AloneUnit AloneOptions AloneRuns Delivered DeliverOptions LoggedEvent "
        "RunSagasOptions upgrade_statements downgrade_statements include_name"
    ),
    "asgi": "join current Joined JoinedContext",
    "calls": "Policies Caller InProcessTransport",
    "codec": "to_datetime",
    "context": "new_span_id",
    "discovery": (
        "Endpoint MemoryRegistry Balancer BalancerOptions OutlierOptions CallEnd Ejection "
        "RoundRobin LeaseOptions"
    ),
    "events": (
        "given Given When read_event subscribe AppendReceipt ProjectionRunner ProjectionOptions"
    ),
    "gateway": (
        "Each Cache Split Mirror Cors OpenApi Certificates AuthFunction Principal "
        "GatewayEngine check outline openapi_of make_key parse_keys Auth Authenticator "
        "DescribedAuth Folders Origins read_proxies"
    ),
    "http": (
        "HttpServer HttpPool HttpExchange HttpRequest HttpResponse Headers Body Limits PoolLimits "
        "AsgiHandler"
    ),
    "identity": "Signer",
    "messaging": "Consumer RelayOptions",
    "personal": "Personal Subject Erased",
    "priority": "Priority",
    "resilience": (
        "RetryOptions BudgetOptions BreakerOptions LimitOptions AdaptiveLimitOptions Breaker Edge "
        "HedgeOptions Hedging LatencyTracker Limiter"
    ),
    "runtime": "Runtime RealRuntime",
    "saga": "SagaRun SagaPolicy Unknown",
    "store": "Once Schema SqliteStore StoreOptions Unit",
    "telemetry": "Tracer MemoryRing JsonFormatter outcome_of",
}
TESTING = {
    "Services in a test": (
        "run serving stand_in replay_histories InProcess GatewayClient GatewayAnswer SimRuntime"
    ),
    "A system under faults": "survive Survival Books NotSurvived",
    "A world of nodes": "World Node SimDisk SimNetwork NetworkFaults Proxy CALM STORMY",
    "What a simulation complains about": (
        "SimulationError Deadlock Escape Leaked Livelock Overdue Unhandled"
    ),
    "Underneath": "SimLoop SimProcess SimWorker Wire PROCESS",
}

# One example of each section; together they are a whole file.
EXAMPLES = {
    "system": """\
[system]
name = "servo-works"
host = "127.0.0.1"
advertise = "10.0.0.5"
node = "host-a"
control_port = 9100
loop = "auto"
accepted_key = "env:NEXT_KEY"
hang = "30s"
on_failure = "continue"
key = "env:SERVO_WORKS_KEY"
joined = ["shop"]
tls = { certificate = "tls/host.pem", key = "tls/host.key", ca = "tls/services.pem" }
""",
    "services": """\
[services.orders]
app = "services.orders:orders"
port = 8001
pages_max = 250_000   # 1 GB
in_flight = 64
waiting = 64
sagas = { in_flight = 256, queued = 5000 }

[services.billing]
app = "services.billing:billing"

[services.shop]
app = "shop.main:app"   # an ASGI application, such as one of FastAPI
server = "uvicorn"

[services.quoting]
app = "services.quoting:quoting"
replicas = 3            # it has queries only
""",
    "telemetry": """\
[telemetry]
otlp = "https://collector.example:4318"
signals = ["traces", "logs", "metrics"]
metrics_every = "30s"
headers = { authorization = "env:OTLP_TOKEN" }
resource = { "deployment.environment.name" = "production" }
tls = { ca = "collector-ca.pem", certificate = "client.pem", key = "client-key.pem" }
sample = 0.1
baggage = ["tenant"]
""",
    "retention": """\
[retention]
sagas = "90d"
events = { "orders.order_placed" = "90d" }   # all others are kept for ever
logs = "14d"
archive = true
""",
    "external": """\
[external.credit_provider]     # in development: a child process
command = ["{python}", "-m", "credit_provider"]
env = { CREDIT_DB = "{data}/credit_provider.db" }

[external.parcels]             # a URL
url = "http://127.0.0.1:9000"

[external.catalogue]           # several copies
urls = ["http://10.0.0.7:9000", "http://10.0.0.8:9000"]
weights = [3, 1]
health = { path = "/up", every = "2s", timeout = "1s", down_after = 2, up_after = 2 }

[external.stock]               # wherever DNS says, or a file
discover = { dns = "http://stock.internal:8080", every = "5s" }

[external.parts]
discover = { srv = "http://_parts._tcp.internal" }

[external.bank]
discover = { file = "bank.json" }

[external.warehouse]           # by TLS, with an authority and a certificate of our own
url = "https://10.0.0.7:8443"
tls = { ca = "tls/own-ca.pem", certificate = "tls/us.pem", key = "tls/us.key" }
""",
    "policies": """\
[policies."billing:credit_provider"]
timeout = "500ms"
retry = { attempts = 2 }
budget = { ratio = 0.1, floor = 1.0 }
limit = { in_flight = 16, waiting = 16 }
breaker = { minimum_calls = 5, failure_rate = 0.5, window = "10s", open_for = "1s" }

[policies."orders:billing"]
limit = { least = 8, most = 200 }
balancer = "round_robin"
breaker = { open_for = "250ms..700ms", probes = 32, ramp = "1s" }

[policies."orders:billing".operations.invoice]
timeout = "300ms"
retry = { attempts = 1 }
hedge = { after = "p95", ratio = 0.05 }
""",
    "gateway": """\
[gateway]
app = "gateway:gateway"
host = "0.0.0.0"
trusted_proxies = ["10.0.0.7", "10.1.0.0/16"]
forwarded_by = "x-forwarded"
port = 8000
replicas = 2
clients.connections = 4096
clients.connections_per_client = 64
clients.head = "10s"
clients.body = "10s"
clients.idle = "75s"
clients.write = "10s"
clients.quiet = "5m"
clients.head_bytes = 16384
clients.headers = 64
health = "/healthz"
access_log = "1%"

[gateway.tls]
certificate = "tls/fullchain.pem"
key = "tls/privkey.pem"
client_ca = "tls/partners.pem"
client = "optional"
""",
    "admin": """\
[admin]
host = "10.0.0.5"
advertise = "admin.shop.example"
port = 9101
ports = { gateway = 9102, orders = 9103, "quoting#1" = 9104 }
tls = true
""",
    "engine": """\
[engine]
postgres = "env:DATABASE_URL"
sqlite = ["customers"]
nats = "env:NATS_URL"
nats_monitor = "http://nats.example:8222"
""",
    "dev": """\
[dev]
opening = "shop:open_shop"
""",
    "advice": """\
[advice]
ignore = { unused-event = "the finance team reads it from the event log" }
""",
}


def api_page() -> str:
    """Return the page of the front door."""
    parts = [
        MADE,
        "# API",
        API_INTRO,
    ]
    for title, names in FRONT_DOOR.items():
        parts.append(f"## {title}")
        parts += [_entry(synchromesh, name) for name in names.split()]
    parts.append(_errors())
    return _page(parts)


def _entry(module: object, name: str) -> str:
    if module is not synchromesh.personal or name not in ALIASES:
        return entry(getattr(module, name), name, level=3, up=UP)
    # An alias has no docstring at run time; the text below it in its module is one.
    source = ast.parse(inspect.getsource(synchromesh.personal))
    texts = {
        node.target.id: below.value.value
        for node, below in pairwise(source.body)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    }
    return f"### `{name}`\n\n```py\n{ALIASES[name]}\n```\n\n{markdown_of(str(texts[name]), UP)}"


def _errors() -> str:
    rows = [
        f"| `{cls.__name__}` | [`{code}`](../errors.md#{code}) | {cls.status} | "
        f"{'yes' if cls.is_retry_safe else 'no'} | {(cls.__doc__ or '').splitlines()[0]} |"
        for code, cls in sorted(error_table().items(), key=lambda pair: pair[1].__name__)
    ]
    return "\n".join(
        [
            "### `synchromesh.errors`",
            "",
            "All errors are classes of `synchromesh.errors`. What each means, and what to do, is",
            "on the page of [errors](../errors.md).",
            "",
            "| class | code | status | retry safe | |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )


def modules_page() -> str:
    """Return the page of what is imported from packages below the front door."""
    parts = [
        MADE,
        "# Modules",
        MODULES_INTRO,
    ]
    for package, names in MODULES.items():
        module = import_module(f"synchromesh.{package}")
        parts.append(f"## `synchromesh.{package}`")
        parts += [_entry(module, name) for name in names.split()]
    return _page(parts)


def testing_page() -> str:
    """Return the page of what tests are written with."""
    parts = [
        MADE,
        "# `synchromesh.testing`",
        "[Test your system](../testing.md) shows how these are used.",
    ]
    for title, names in TESTING.items():
        parts.append(f"## {title}")
        parts += [
            entry(getattr(synchromesh.testing, name), name, level=3, up=UP)
            for name in names.split()
        ]
    return _page(parts)


def configuration_page() -> str:
    """Return the page of `synchromesh.toml`."""
    parts = [
        MADE,
        "# synchromesh.toml",
        FILE_INTRO,
    ]
    parts += [_section(field) for field in msgspec.structs.fields(SystemConfig)]
    return _page(parts)


def _section(field: msgspec.structs.FieldInfo) -> str:
    struct = struct_of(field.type)
    sections = [struct, *nested_in(struct)]
    parts = []
    for each in sections:
        head, _, words = (each.__doc__ or "").splitlines()[0].partition(": ")
        parts += [f"{'##' if each is struct else '###'} {head}", words[0].upper() + words[1:]]
        if prose := _prose_of(each):
            parts.append(prose)
        parts.append(_table(each))
    parts.append(f"```toml\n{EXAMPLES[field.encode_name].rstrip()}\n```")
    return "\n\n".join(parts)


def struct_of(kind: object) -> type[msgspec.Struct]:
    """Return the section that a type holds: itself, or the values of a table by name."""
    found = _held_by(kind)
    assert isinstance(found, type)
    assert issubclass(found, msgspec.Struct)
    return found


def nested_in(struct: type[msgspec.Struct]) -> list[type[msgspec.Struct]]:
    """Return the sections within a section, such as `retry = {...}`, at any depth, each once."""
    found: dict[type[msgspec.Struct], None] = {}
    for field in msgspec.structs.fields(struct):
        inner = _held_by(field.type)
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            found |= dict.fromkeys((inner, *nested_in(inner)))
    return list(found)


def _held_by(kind: object) -> object:
    """Return what a table by name has as values; what may be left out; else the type itself."""
    held = [each for each in typing.get_args(kind) if each is not type(None)]
    return held[-1] if held else kind


def _prose_of(struct: type[msgspec.Struct]) -> str:
    body = (struct.__doc__ or "").partition("\n")[2].partition("Attributes:")[0]
    return markdown_of(body, UP)


def meanings_of(struct: type[msgspec.Struct]) -> dict[str, str]:
    """Return what each key of a section means, as its docstring says."""
    listed = markdown_of(struct.__doc__ or "", UP).partition("**Attributes**\n\n")[2]
    items = [line.removeprefix("- ") for line in listed.partition("\n\n")[0].splitlines()]
    return {name.strip("`"): words for name, _, words in (item.partition(": ") for item in items)}


def _table(struct: type[msgspec.Struct]) -> str:
    meanings = meanings_of(struct)
    rows = [
        f"| `{field.encode_name}` | {_kind(field.type)} | {_default(field)} | "
        f"{meanings[field.name]} |"
        for field in msgspec.structs.fields(struct)
    ]
    return "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows])


def _kind(kind: object) -> str:
    names: dict[object, str] = {str: "text", int: "integer", float: "number", bool: "true or false"}
    if kind in names:
        return names[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return " or ".join(f'`"{each}"`' for each in arguments)
    if origin is list:
        return f"list of {_kind(arguments[0])}s"
    if origin is dict:
        return f"table of {_kind(arguments[1])}s"
    if kind in (Secret, SecretUrl):
        return "reference" if kind == Secret else "URL or reference"
    if origin is typing.Annotated:
        return _kind(arguments[0])
    if type(None) in arguments:
        return _kind(_held_by(kind))
    return "table"


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.default_factory is not msgspec.NODEFAULT:
        return f"`{msgspec.json.encode(field.default_factory()).decode()}`"
    if field.default is msgspec.NODEFAULT:
        return "*required*"
    if isinstance(field.default, msgspec.Struct):
        return "its own"
    if field.default is None:
        return "*left out*"
    return f"`{msgspec.json.encode(field.default).decode()}`"


def _page(parts: list[str]) -> str:
    return "\n\n".join(parts) + "\n"


@functools.cache
def guide_page() -> str:
    """Return the page of symptoms, as `synchromesh guide` has them."""
    parts = ["# Which problem do I have?", GUIDE_INTRO]
    for title, symptoms in GUIDE.items():
        rows = [
            f"| {each.seen} | `{each.look}` | [{each.pattern}]({each.page}) | {each.change} |"
            for each in symptoms
        ]
        head = "| what you see | look at | the pattern | the smallest change |\n|---|---|---|---|"
        parts += [f"## {title}", "\n".join([head, *rows])]
    return _page(parts)


def advice_page() -> str:
    """Return the page of all codes of advice, a section each."""
    parts = ["# Advice codes", ADVICE_INTRO]
    for each in CODES:
        seen = (inspect.getdoc(each.found) or "").removeprefix("Find ")
        parts += [
            f"## {each.code}",
            f"**Finds** {seen}",
            f"{each.why} Mended by: [{each.pattern}]({each.page}). {each.change}",
        ]
    return _page(parts)


def pages() -> dict[Path, str]:
    """Return every page that is made, by where it stands."""
    below = DOCS / "reference"
    return {
        below / "api.md": api_page(),
        below / "modules.md": modules_page(),
        below / "testing.md": testing_page(),
        below / "configuration.md": configuration_page(),
        DOCS / "which-problem.md": guide_page(),
        DOCS / "advice-codes.md": advice_page(),
    }


def main() -> None:
    """Write the pages."""
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
