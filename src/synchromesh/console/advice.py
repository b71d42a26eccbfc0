"""The page Advice: what could be better, as `synchromesh advise` says."""

from __future__ import annotations

from synchromesh.console.markup import Markup, tag
from synchromesh.console.parts import PageQuery, notes, parts, section, state
from synchromesh.console.source import Source, Told


async def fetch_advice(source: Source, _: PageQuery) -> Told:
    """Return the advice for the system as it is now."""
    return await source.advice()


def render_advice(told: Told, _: PageQuery) -> Markup:
    """Draw the page Advice."""
    found = [
        section(
            f"{each['code']}: {each['what']}",
            tag("p", each["why"]),
            tag("p", tag("strong", "Change: "), each["change"]),
            tag("p", tag("strong", "Pattern: "), each["pattern"], ", docs/", each["page"]),
            notes(each["evidence"], "none"),
        )
        for each in told["advice"]
    ]
    ignored = [f"ignored: {code}, for {reason}" for code, reason in told["ignored"].items()]
    return parts(
        tag("h1", "Advice"),
        found or tag("p", state("nothing to advise", "good")),
        notes(ignored, "none") if ignored else None,
    )
