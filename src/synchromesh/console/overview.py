"""The pages Now, Services and Service: what needs a person first, and what each part does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from synchromesh.console.markup import Child, Markup, tag
from synchromesh.console.parts import (
    PageQuery,
    clock_us,
    link,
    milliseconds,
    notes,
    parts,
    rate,
    section,
    service_of,
    services_of,
    state,
    table,
    tick,
    verb,
)
from synchromesh.console.source import Source, Told
from synchromesh.errors import UnknownOperation

_WORK = ("name", "rate", "failed", "half took", "99 in 100 took")


async def fetch_now(source: Source, _: PageQuery) -> Told:
    """Return what needs a person, what is out of the ordinary, and what goes on."""
    status = await source.ask("GET", "/status")
    return {
        "findings": status["findings"],
        "breakers": list(_breakers_not_closed(status)),
        "faults": status["faults"]["in_force"],
        "isolations": status["isolations"],
        "acts": status["acts"],
        "code_changed": status["code_changed"],
        "services": _services(status),
        **_only(await source.work(), "over_s", "work"),
    }


def render_now(told: Told, _: PageQuery) -> Markup:
    """Draw the page Now."""
    findings = told["findings"]
    first = notes(findings) if findings else tag("p", state("nothing needs a person", "good"))
    return parts(
        tag("h1", "Now"),
        section("Needs a person", first),
        section("Out of the ordinary", *_unusual(told)),
        section("Services", _services_table(told["services"])),
        section("Work", work_table(f"Routes and operations{over(told)}", told["work"])),
    )


async def fetch_services(source: Source, _: PageQuery) -> Told:
    """Return all instances of services."""
    status = await source.ask("GET", "/status")
    shown = {name: status[name] for name in ("externals", "joined")}
    return {"services": _services(status), **shown}


def render_services(told: Told, _: PageQuery) -> Markup:
    """Draw the page Services."""
    externals = [
        (name, len(own["instances"]), "; ".join(f"{u}: {w}" for u, w in own["down"].items()))
        for name, own in told["externals"].items()
    ]
    return parts(
        tag("h1", "Services"),
        _services_table(told["services"]),
        section(
            "External services", table("External services", ("name", "urls", "down"), externals)
        ),
        section(
            "Joined services",
            table(
                "Joined services",
                ("name", "instances"),
                [
                    (name, ", ".join(each["url"] for each in own) or "none")
                    for name, own in told["joined"].items()
                ],
            ),
        ),
    )


async def fetch_service(source: Source, asked: PageQuery) -> Told:
    """Return all that is known of one service.

    Raises:
        UnknownOperation: there is none.
    """
    status = await source.ask("GET", "/status")
    instances = {
        name: own for name, own in status["services"].items()
        if service_of(name) == asked.name
    }  # fmt: skip
    if not instances:
        known = ", ".join(services_of(status))
        raise UnknownOperation(f"there is no service {asked.name[:80]!r}; there are {known}")
    work, policies = await source.work(), await source.policies()
    return {
        "name": asked.name,
        "instances": instances,
        "over_s": work["over_s"],
        "operations": [
            each for each in work["work"]
            if not each["is_route"] and each["name"].startswith(f"{asked.name}.")
        ],
        "edges": [each for each in work["edges"] if asked.name in (each["caller"], each["callee"])],
        "policies": [
            each for each in policies["edges"] if asked.name in each["edge"].split(":")
        ],
    }  # fmt: skip


def render_service(told: Told, asked: PageQuery) -> Markup:
    """Draw the page of one service."""
    instances: dict[str, Any] = told["instances"]
    return parts(
        tag("h1", told["name"]),
        section("Instances", _services_table(_rows_of(instances))),
        section("Operations", work_table(f"Operations{over(told)}", told["operations"])),
        section("Edges", edges_table(told)),
        section("Circuit breakers", _breakers_table(instances)),
        section("Background", _children_table(instances)),
        section("Lag", _lag_table(instances), _projections_table(asked, instances)),
        section("Database", tag("p", link("/databases", told["name"], "Size, tables, retention"))),
        section("Policies, as `config explain` says", *_policies(told["policies"])),
        section(
            "Restart",
            [
                verb(
                    asked, "restart", f"Restart {name}", {"name": name},
                    effects=["It is stopped and started anew; calls are held meanwhile."],
                )
                for name in instances
            ],
        ),
    )  # fmt: skip


def work_table(label: str, work: Iterable[Mapping[str, Any]]) -> Markup:
    """Return what routes or operations did, a row each."""
    return table(label, _WORK, ((each["name"], *figures(each)) for each in work))


def edges_table(told: Told) -> Markup:
    """Return what went over the "edges" of a page, a row each."""
    rows = (
        (f"{each['caller']} → {each['callee']}", *figures(each), _breaker(each.get("breaker", "")))
        for each in told["edges"]
    )
    return table(f"Edges{over(told)}", ("edge", *_WORK[1:], "breaker"), rows)


def over(told: Told) -> str:
    """Return over which time the rates of a page are."""
    return f", over the last {told['over_s']:.0f} s"


def figures(each: Mapping[str, Any]) -> tuple[Child, ...]:
    """Return rate, errors and durations as cells."""
    failed = each["failed_per_s"]
    if not each["per_s"]:
        return ("0", "0", None, None)
    return (
        rate(each["per_s"]),
        state(rate(failed), "bad") if failed else "0",
        milliseconds(each["p50_s"]),
        milliseconds(each["p99_s"]),
    )


def health_of(instance: Mapping[str, Any]) -> str:
    """Return the state of an instance in one word."""
    health = instance["health"]
    if health["is_draining"]:
        return "draining"
    if not health["is_healthy"]:
        return "not healthy"
    return "ready"


def _only(told: Told, *names: str) -> Told:
    return {name: told[name] for name in names}


def _services(status: Told) -> list[dict[str, Any]]:
    return _rows_of(status["services"])


def _rows_of(instances: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "state": health_of(own),
            "in_flight": own["in_flight"],
            "sagas": own["sagas"],
            "behind": sum(own["behind"].values()),
            "set_aside": own["parked"],
            "pid": own["pid"],
        }
        for name, own in instances.items()
    ]


def _services_table(rows: Iterable[Mapping[str, Any]]) -> Markup:
    headings = ("instance", "state", "calls", "sagas", "events behind", "set aside", "process")
    return table(
        "Instances",
        headings,
        (
            (
                link("/services", service_of(each["name"]), each["name"]),
                state(each["state"]),
                each["in_flight"],
                ", ".join(f"{count} {word}" for word, count in each["sagas"].items() if count),
                each["behind"],
                each["set_aside"],
                each["pid"],
            )
            for each in rows
        ),
    )


def _breakers_not_closed(status: Told) -> Iterator[dict[str, Any]]:
    for caller, own in {**status["services"], **status["clients"]}.items():
        for callee, breaker in own["breakers"].items():
            if breaker["state"] != "closed":
                yield {
                    "edge": f"{caller}:{callee}",
                    "state": breaker["state"],
                    "in_state_s": breaker["in_state_s"],
                }


def _unusual(told: Told) -> list[Child]:
    breakers = [
        (each["edge"], state(each["state"]), f"{each['in_state_s']:.0f} s")
        for each in told["breakers"]
    ]
    faults = [
        (each["target"], each["what"], each["struck"], each["who"], each["why"])
        for each in told["faults"]
    ]
    acts = [
        (each["what"], each["target"], clock_us(each["at_us"]), each["who"], each["why"])
        for each in told["acts"]
    ]
    isolations = [(each["target"], each["who"], each["why"]) for each in told["isolations"]]
    changed = [(name, ", ".join(files)) for name, files in told["code_changed"].items()]
    return [
        table("Breakers that are not closed", ("edge", "state", "for"), breakers),
        table("Broken on purpose", ("what", "how", "struck", "by", "why"), faults)
        if faults
        else None,
        table("Isolated by hand", ("what", "by", "why"), isolations) if isolations else None,
        table("Code that has changed", ("part", "files"), changed) if changed else None,
        table("What people did", ("what", "of", "at", "who", "why"), acts) if acts else None,
    ]


def _breaker(word: str) -> Child:
    return state(word) if word else None


def _breakers_table(instances: Mapping[str, Mapping[str, Any]]) -> Markup:
    headings = ("edge", "state", "calls in the window", "failed", "slow", "in this state for")
    rows = [
        (
            f"{name} → {callee}", state(each["state"]), each["calls"], each["failures"],
            each["slow"], f"{each['in_state_s']:.0f} s",
        )
        for name, own in instances.items()
        for callee, each in own["breakers"].items()
    ]  # fmt: skip
    return table("Circuit breakers", headings, rows)


def _children_table(instances: Mapping[str, Mapping[str, Any]]) -> Markup:
    rows = [
        (f"{name}/{child}", state(each["state"]), each["restarts"], each["last_error"])
        for name, own in instances.items()
        for child, each in own["health"]["children"].items()
    ]
    return table("Background children", ("child", "state", "restarts", "last error"), rows)


def _lag_table(instances: Mapping[str, Mapping[str, Any]]) -> Markup:
    rows = [
        (f"{name} → {subscriber}", count)
        for name, own in instances.items()
        for subscriber, count in own["behind"].items()
    ]
    return table("Events that subscribers have not got", ("subscriber", "events"), rows)


def _projections_table(asked: PageQuery, instances: Mapping[str, Mapping[str, Any]]) -> Markup:
    headings = (
        "projection",
        "generation",
        "state",
        "position",
        "behind",
        "skipped",
        "parked at",
        "do",
    )
    rows = [
        (
            each["name"], each["generation"], state(each["state"]), each["position"],
            each["behind"], each["skipped"],
            None if each["parked"] is None else parts(
                f"{each['parked']['position']} ({each['parked']['error']})",
                *_verbs_of_parked(asked, name, each),
            ),
            verb(
                asked, "projection.rebuild", f"Rebuild {each['name']}",
                {"name": each["name"], "service": service_of(name)},
                more=tick("Try what was skipped", "retry_skipped"),
                effects=["It is built beside this one, from the first event on, and takes over."],
            ) if each["state"] == "live" else None,
        )
        for name, own in instances.items()
        for each in own["projections"]
    ]  # fmt: skip
    return table("Projections", headings, rows)


def _verbs_of_parked(
    asked: PageQuery, instance: str, projection: Mapping[str, Any]
) -> Iterator[Markup]:
    """Yield what can be done with a projection that is parked."""
    which = {"name": projection["name"], "service": service_of(instance)}
    yield verb(
        asked, "projection.retry", "Retry", which,
        effects=["The projection takes the event again."],
    )  # fmt: skip
    if projection["parked"]["is_poison"]:
        at = projection["parked"]["position"]
        yield verb(
            asked, "projection.skip", f"Skip event {at}",
            {**which, "position": at, "generation": projection["generation"]},
            effects=[
                "The event is left out, and the projection goes on behind it.",
                "A rebuild leaves it out, too, unless it is told to try it.",
            ],
        )  # fmt: skip


def _policies(policies: Iterable[Mapping[str, Any]]) -> list[Markup]:
    drawn = [
        tag(
            "details",
            tag("summary", each["edge"]),
            tag("pre", "\n".join(each["policy"]), tabindex="0"),
            [
                parts(tag("p", name), tag("pre", "\n".join(lines), tabindex="0"))
                for name, lines in each["operations"].items()
            ],
        )
        for each in policies
    ]
    return drawn or [tag("p", "No edge of its own: the default policy guards it.", class_="none")]
