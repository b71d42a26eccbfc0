"""The screen of `synchromesh status`: findings, services, faults, contracts, breakers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from synchromesh.cli.show import duration_text, faults_table, plain_table, styled, time_of_day
from synchromesh.codec import to_datetime
from synchromesh.system.config.engine_section import FILES
from synchromesh.system.control.rates import WorkRate
from synchromesh.system.control.status import Status
from synchromesh.system.control.status_parts import (
    BreakerStatus,
    ChildStatus,
    ContractBreak,
    ListedInstance,
)

# Routes, and as many operations.
_WORK_MAX = 10


def screen(status: Status, unreachable: str = "", work: Sequence[WorkRate] = ()) -> RenderableType:
    """Render a status, the most important first: a short terminal cuts it below.

    `unreachable` is why the status is not current; `work` what was done since the last look.
    """
    parts = _head(status)
    if unreachable:
        parts.append(Text(f"last known: {unreachable}", style="red"))
    parts += [Text(finding, style="red") for finding in status.findings]
    if not status.findings:
        parts.append(Text("nothing needs a person", style="green"))
    parts += [Text(each, style="yellow") for each in _noted(status)]
    parts += [Text(), _services(status)]
    if work:
        parts += [Text(), _work_table(work)]
    if status.faults.in_force:
        parts += [Text(), faults_table(status.faults.in_force)]
    if status.isolations:
        table = plain_table("isolated by hand", "at", "who", "why")
        for each in status.isolations:
            at = time_of_day(to_datetime(each.at_us).isoformat())
            table.add_row(Text(each.target, style="yellow"), at, Text(each.who), Text(each.why))
        parts += [Text(), table]
    if status.contract_breaks:
        parts += [Text(), _contract_breaks(status.contract_breaks)]
    if ejected := sorted(_ejected(status)):
        parts += [Text(), _ejected_table(ejected)]
    breakers = sorted(_breakers(status), key=lambda each: each[1].state == "closed")
    if breakers:
        parts += [Text(), _breakers_table(breakers)]
    return Group(*parts)


def _noted(status: Status) -> Iterator[str]:
    """Yield what somebody may want to know, and nobody has to do."""
    for signal, export in status.export.items():
        why = f"; {export.why}" if export.why else ""
        yield f"{signal} that the collector has not taken: {export.lost}{why}"
    if status.code_changed:
        files = sorted({file for files in status.code_changed.values() for file in files})
        yield f"code has changed since the start: {', '.join(files)}"


def _work_table(work: Sequence[WorkRate]) -> Table:
    """Render what routes and operations did, the busiest of each first."""
    table = plain_table("work", "a second", "failed", "p50", "p99")
    for kind in (True, False):
        for each in [one for one in work if one.is_route is kind][:_WORK_MAX]:
            table.add_row(
                Text(each.name),
                f"{each.per_s:.1f}",
                Text(f"{each.failed_per_s:.1f}", style="red" if each.failed_per_s else ""),
                f"{each.p50_s * 1e3:.1f} ms",
                f"{each.p99_s * 1e3:.1f} ms",
            )
    return table


def _head(status: Status) -> list[RenderableType]:
    head = f"{status.system}  {f'process {status.pid}' if status.pid else 'replicas'}"
    if status.spans_dropped:
        head += f"  {status.spans_dropped} spans dropped"
    servers = {} if status.engines == FILES else status.engines
    told = [f"{what}: {engine}" for what, engine in servers.items()]
    return [Text(head, style="bold"), *map(Text, told)]


def _services(status: Status) -> Table:
    # Where all run in one process, the head of the screen names it.
    is_split = any(service.pid != status.pid for service in status.services.values())
    has_parked = any(service.parked for service in status.services.values())
    process, parked = ["pid"] * is_split, ["parked"] * has_parked
    has_duties = any(service.duties for service in status.services.values())
    duties = ["duties"] * has_duties
    # An idle system has none; who looks at a busy one wants to see who has them.
    has_calls = any(service.in_flight for service in status.services.values())
    calls = ["in flight"] * has_calls
    table = plain_table(
        "service", *process, "health", *calls, "instances", "sagas", "behind", *parked, *duties
    )

    def add(
        name: str, pid: int | None, health: Text, *cells: RenderableType, in_flight: str = ""
    ) -> None:
        numbers = [str(pid or "")] * is_split
        table.add_row(name, *numbers, health, *[in_flight] * has_calls, *cells)

    for column in table.columns:
        # On a narrow screen words are wrapped; names and URLs are there to be copied, whole.
        column.no_wrap = column.header in ("service", "pid", "instances")
    for name, service in status.services.items():
        add(
            name,
            service.pid,
            _health(service.health.children, is_draining=service.health.is_draining),
            _instances(service.instances),
            _counts(service.sagas),
            _behind(service.behind),
            *[Text(str(service.parked), style="red" if service.parked else "")] * has_parked,
            *[_duties(service.duties)] * has_duties,
            in_flight=str(service.in_flight),
        )
    for name, external in status.externals.items():
        child = status.children.get(f"external/{name}")
        health = styled(child.state) if child else Text("not ours")
        if external.down:
            up = external.checked - len(external.down)
            health = Text(f"{up} of {external.checked} up", style="red")
        add(name, None, health, _instances(external.instances))
    for name, instances in status.joined.items():
        add(name, None, Text("joined" if instances else "not joined"), _instances(instances))
    gateways = status.gateways
    if status.gateway and not gateways:
        gateways = {"gateway": status.gateway}
    for name, gateway in gateways.items():
        children = _of_gateway(name, status.children)
        add(name, gateway.pid, _health(children), Text(gateway.url))
    return table


def _of_gateway(name: str, children: Mapping[str, ChildStatus]) -> dict[str, ChildStatus]:
    """Return the children of a gateway: of several, by its name, or that of its host."""
    own, _, at = name.partition("@")
    return {
        child: state
        for child, state in children.items()
        if child.partition("/")[0].partition("@")[0] in (own, "gateway")
        and child.partition("@")[2] == at
    }


def _health(children: Mapping[str, ChildStatus], *, is_draining: bool = False) -> Text:
    down = [f"{name} {each.state}" for name, each in children.items() if each.state != "running"]
    if down:
        return Text(", ".join(down), style="red")
    return Text("draining", style="yellow") if is_draining else styled("healthy")


def _instances(instances: list[ListedInstance]) -> Text:
    """Render the URLs of a service's instances, with their names where there are several."""
    if not instances:
        return Text("none", style="red")
    lines = [each.url for each in instances]
    if len(lines) > 1:
        lines = [f"{each.url} {each.instance}" for each in instances]
    if instances[0].is_stale:
        return Text("\n".join(f"{line} stale" for line in lines), style="yellow")
    return Text("\n".join(lines))


def _duties(duties: Sequence[str]) -> Text:
    """Render what a replica does for all, with its shards of sagas as a number."""
    shards = sum(each.startswith("sagas/") for each in duties)
    others = [each for each in duties if not each.startswith("sagas/")]
    return Text(", ".join([*([f"{shards} of sagas"] if shards else []), *others]) or "-")


def _behind(behind: Mapping[str, int]) -> Text:
    """Render the lag of relays and projections; 0 where there is none."""
    if behind and not any(behind.values()):
        return Text("0")
    # Whether a relay's subscriber or a projection: its name says which.
    return _counts({name.partition("/")[2]: count for name, count in behind.items() if count})


def _counts(counts: Mapping[str, int]) -> Text:
    """Render counts in one line; stuck ones are red."""
    line = Text(", ").join(
        Text(f"{name} {count}", style="red" if name == "stuck" else "")
        for name, count in sorted(counts.items())
    )
    return line or Text("-")


def _contract_breaks(records: list[ContractBreak]) -> Table:
    """Render who let in what does not fit, the last one first."""
    table = plain_table("contracts broken by", "pid", "at", "who", "why", "what", "now")
    for record in reversed(records):
        table.add_row(
            record.part,
            str(record.pid),
            time_of_day(to_datetime(record.at_us).isoformat()),
            Text(record.who or "a start"),
            Text(record.reason),
            Text("\n".join(record.differences)),
            Text("broken", style="red") if record.standing else Text("mended", style="green"),
        )
    return table


def _ejected(status: Status) -> Iterator[tuple[str, str]]:
    """Yield each instance that somebody does not call for now, and who that is."""
    callers = {name: service.ejected for name, service in status.services.items()}
    callers |= {name: client.ejected for name, client in status.clients.items()}
    for name, ejected in callers.items():
        yield from ((instance, name) for instances in ejected.values() for instance in instances)


def _ejected_table(ejected: list[tuple[str, str]]) -> Table:
    table = plain_table("ejected instance", "by")
    for instance, caller in ejected:
        table.add_row(Text(instance, style="yellow"), caller)
    return table


def _breakers(status: Status) -> Iterator[tuple[str, BreakerStatus]]:
    """Yield each breaker with its edge, whose caller is the replica that has it."""
    callers = {name: service.breakers for name, service in status.services.items()}
    callers |= {name: client.breakers for name, client in status.clients.items()}
    for who, breakers in callers.items():
        yield from ((f"{who} -> {callee}", breaker) for callee, breaker in breakers.items())


def _breakers_table(breakers: list[tuple[str, BreakerStatus]]) -> Table:
    table = plain_table("breaker", "state", "for", "failures", "calls")
    for edge, breaker in breakers:
        table.add_row(
            edge,
            styled(breaker.state),
            duration_text(breaker.in_state_s),
            str(breaker.failures),
            str(breaker.calls),
        )
    return table
