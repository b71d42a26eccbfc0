"""The page Edge: routes of the gateway with what they do, and what stands in for what is off."""

from __future__ import annotations

from synchromesh.console.markup import Markup, tag
from synchromesh.console.overview import over, work_table
from synchromesh.console.parts import PageQuery, notes, parts, section, state, table
from synchromesh.console.source import Source, Told


async def fetch_edge(source: Source, _: PageQuery) -> Told:
    """Return the gateway, its routes with their rates, and their ladders."""
    status = await source.ask("GET", "/status")
    work = await source.work()
    return {
        "gateway": status["gateway"],
        "over_s": work["over_s"],
        "routes": [each for each in work["work"] if each["is_route"]],
        "stood_in": work["stood_in"],
        "branches": (await source.policies())["branches"],
    }


def render_edge(told: Told, _: PageQuery) -> Markup:
    """Draw the page Edge."""
    gateway = told["gateway"]
    if gateway is None:
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
    warnings = gateway["warnings"]
    return parts(
        tag("h1", "Edge"),
        tag("p", "The gateway listens on ", tag("code", gateway["url"]), "."),
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
