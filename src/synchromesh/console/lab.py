"""The page Lab: break a service on purpose, see what it strikes, and heal it."""

from __future__ import annotations

from synchromesh.console.markup import Markup, tag
from synchromesh.console.parts import (
    PageQuery,
    choice,
    parts,
    section,
    services_of,
    table,
    text_field,
    verb,
)
from synchromesh.console.source import Source, Told


async def fetch_lab(source: Source, _: PageQuery) -> Told:
    """Return the faults in force, and what can be broken."""
    status = await source.ask("GET", "/status")
    return {
        "faults": status["faults"]["in_force"],
        "struck": status["faults"]["struck"],
        "targets": [*services_of(status), *status["externals"]],
    }


def render_lab(told: Told, asked: PageQuery) -> Markup:
    """Draw the page Lab."""
    rows = [
        (
            each["target"], each["what"],
            "until healed" if each["left_s"] is None else f"{each['left_s']:.0f} s",
            each["struck"], each["who"], each["why"],
            verb(asked, "heal", f"Heal {each['target']}", {"target": each["target"]}),
        )
        for each in told["faults"]
    ]  # fmt: skip
    how = [
        choice("What", "target", told["targets"]),
        choice("How", "how", ("fails", "is late by 300 ms", "does not answer")),
        text_field("For, such as 20s; empty until it is healed", "for", "30s"),
    ]
    return parts(
        tag("h1", "Lab"),
        section(
            "Broken on purpose",
            table("Faults in force", ("what", "how", "still", "struck", "by", "why", "do"), rows),
            tag("p", f"Attempts that faults have struck so far: {told['struck']}."),
        ),
        section(
            "Break something",
            verb(
                asked, "break", "Break it", {}, more=how,
                effects=["Calls to it fail, are late or get no answer, as with a real fault."],
            ),
        ),
    )  # fmt: skip
