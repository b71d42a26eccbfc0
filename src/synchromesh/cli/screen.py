"""The screen of `synchromesh status`: services, what needs a person, faults, breakers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from synchromesh.cli.show import faults_table, length, plain_table, styled
from synchromesh.system.control.status import (
    BreakerStatus,
    ChildStatus,
    ListedInstance,
    Status,
)


def screen(told: Status, away: str = "") -> RenderableType:
    """Return one screen with all of a status, what matters most first: a short one is cut below.

    `away` says why the status is not of now.
    """
    head = f"{told.system}  process {told.pid}"
    if told.spans_dropped:
        head += f"  {told.spans_dropped} spans dropped"
    parts: list[RenderableType] = [Text(head, style="bold")]
    if away:
        parts.append(Text(f"as it was before: {away}", style="red"))
    parts += [Text(finding, style="red") for finding in told.findings]
    if not told.findings:
        parts.append(Text("nothing needs a person", style="green"))
    parts += [Text(), _services(told)]
    if told.faults.in_force:
        parts += [Text(), faults_table(told.faults.in_force)]
    # Those that are closed come last.
    breakers = sorted(_breakers(told), key=lambda breaker: breaker.state == "closed")
    if breakers:
        parts += [Text(), _breakers_table(breakers)]
    return Group(*parts)


def _services(told: Status) -> Table:
    # In one process the head of the screen says which.
    is_split = any(service.pid != told.pid for service in told.services.values())
    has_parked = any(service.parked for service in told.services.values())
    process, parked = ["pid"] * is_split, ["parked"] * has_parked
    table = plain_table("service", *process, "health", "instances", "sagas", "behind", *parked)

    def add(name: str, pid: int | None, *cells: RenderableType) -> None:
        table.add_row(name, *([str(pid or "")] if is_split else []), *cells)

    for column in table.columns:
        # On a narrow screen words are wrapped; names and URLs are there to be copied, whole.
        column.no_wrap = column.header in ("service", "pid", "instances")
    for name, service in told.services.items():
        add(
            name,
            service.pid,
            _health(service.health.children, is_draining=service.health.is_draining),
            _instances(service.instances),
            _counts(service.sagas),
            _behind(service.behind),
            *[Text(str(service.parked), style="red" if service.parked else "")] * has_parked,
        )
    for name, external in told.externals.items():
        child = told.children.get(f"external/{name}")
        health = styled(child.state) if child else Text("not ours")
        add(name, None, health, _instances(external.instances))
    if told.gateway:
        own = told.children.items()
        children = {name: state for name, state in own if name.partition("/")[0] == "gateway"}
        add("gateway", told.gateway.pid, _health(children), Text(told.gateway.url))
    return table


def _health(children: Mapping[str, ChildStatus], *, is_draining: bool = False) -> Text:
    down = [name for name, child in children.items() if child.state != "running"]
    if down:
        return Text(f"{', '.join(down)} down", style="red")
    return Text("draining", style="yellow") if is_draining else styled("healthy")


def _instances(instances: list[ListedInstance]) -> Text:
    """Return where the instances of a service are, each with its name where there are several."""
    if not instances:
        return Text("none", style="red")
    lines = [each.url for each in instances]
    if len(lines) > 1:
        lines = [f"{each.url} {each.instance}" for each in instances]
    if instances[0].is_stale:
        return Text("\n".join(f"{line} stale" for line in lines), style="yellow")
    return Text("\n".join(lines))


def _behind(behind: Mapping[str, int]) -> Text:
    """Return who has events yet to take; 0 where all took all."""
    if behind and not any(behind.values()):
        return Text("0")
    # Whether a relay's subscriber or a projection: its name says which.
    return _counts({name.partition("/")[2]: count for name, count in behind.items() if count})


def _counts(counts: Mapping[str, int]) -> Text:
    """Return counts in one line; what is stuck is red."""
    line = Text(", ").join(
        Text(f"{name} {count}", style="red" if name == "stuck" else "")
        for name, count in sorted(counts.items())
    )
    return line or Text("-")


def _breakers(told: Status) -> Iterator[BreakerStatus]:
    for service in told.services.values():
        yield from service.breakers.values()
    for client in told.clients.values():
        yield from client.breakers.values()


def _breakers_table(breakers: list[BreakerStatus]) -> Table:
    table = plain_table("breaker", "state", "for", "failures", "calls")
    for breaker in breakers:
        table.add_row(
            breaker.name,
            styled(breaker.state),
            length(breaker.in_state_s),
            str(breaker.failures),
            str(breaker.calls),
        )
    return table
