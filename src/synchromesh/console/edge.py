"""The page Edge: routes of the gateway with what they do, and what stands in for what is off."""

from __future__ import annotations

from synchromesh.console.markup import Markup, tag
from synchromesh.console.overview import over, work_table
from synchromesh.console.parts import PageQuery, notes, parts, section, state, table
from synchromesh.console.source import Source, Told


async def fetch_edge(source: Source, _: PageQuery) -> Told:
    """Return the gateways, their routes with their rates, and their ladders."""
    status = await source.ask("GET", "/status")
    gateways = [status["gateway"]] if status["gateway"] is not None else []
    work = await source.work()
    return {
        "gateways": list(status["gateways"].values()) or gateways,
        "over_s": work["over_s"],
        "routes": [each for each in work["work"] if each["is_route"]],
        "stood_in": work["stood_in"],
        "branches": (await source.policies())["branches"],
    }


def render_edge(told: Told, _: PageQuery) -> Markup:
    """Draw the page Edge."""
    gateways = told["gateways"]
    if not gateways:
        return parts(tag("h1", "Edge"), tag("p", "This system has no gateway.", class_="none"))
    ladders = [
        (each["route"], each["branch"], each["asks"], " → ".join(each["ladder"]))
        for each in told["branches"]
    ]
    stood_in = [
        (each["route"], each["branch"] or "all of it", state(each["outcome"], "busy"),
         f"{each['per_s']:.2f}/s")
        for each in told["stood_in"]
    ]  # fmt: skip
    warnings = list(dict.fromkeys(each for own in gateways for each in own["warnings"]))
    listens = "The gateway listens on " if len(gateways) == 1 else "The gateways listen on "
    urls = [part for own in gateways for part in (", ", tag("code", own["url"]))][1:]
    return parts(
        tag("h1", "Edge"),
        tag("p", listens, *urls, "."),
        notes(warnings, "busy") if warnings else tag("p", state("nothing to be known", "good")),
        section("Routes", work_table(f"Routes{over(told)}", told["routes"])),
        section(
            "Answered in part, or by something that stands in",
            table(
                f"Degraded answers{over(told)}",
                ("route", "branch", "came to", "a second"),
                stood_in,
            ),
        ),
        section(
            "What is answered while a service is off",
            table("Ladders", ("route", "branch", "asks", "answers with"), ladders),
        ),
    )
