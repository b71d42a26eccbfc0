"""The few shapes that pictures are drawn of, as SVG: no script, no font from elsewhere."""

from __future__ import annotations

from xml.sax.saxutils import escape

INK, GREY, PAPER = "#1f2933", "#8695a4", "#ffffff"
GREEN, RED, AMBER, BLUE = "#2f9e44", "#e03131", "#f08c00", "#1971c2"
FONT = "font-family='system-ui, sans-serif'"


def text(
    x: float, y: float, words: str, *, size: int = 13, fill: str = INK, anchor: str = "start"
) -> str:
    """Return words at a point."""
    return (
        f"<text x='{x:g}' y='{y:g}' font-size='{size}' fill='{fill}' text-anchor='{anchor}'>"
        f"{escape(words)}</text>"
    )


def rect(x: float, y: float, width: float, height: float, *, fill: str, stroke: str = "") -> str:
    """Return a box; with a stroke its corners are round."""
    more = f" stroke='{stroke}' rx='6'" if stroke else ""
    return f"<rect x='{x:g}' y='{y:g}' width='{width:g}' height='{height:g}' fill='{fill}'{more}/>"


def line(x: float, y: float, to_x: float, to_y: float, *, stroke: str, more: str = "") -> str:
    """Return a line; `more` are further attributes of it."""
    return (
        f"<line x1='{x:g}' y1='{y:g}' x2='{to_x:g}' y2='{to_y:g}' stroke='{stroke}'"
        f"{' ' if more else ''}{more}/>"
    )


def circle(x: float, y: float, radius: float, *, fill: str) -> str:
    """Return a dot."""
    return f"<circle cx='{x:g}' cy='{y:g}' r='{radius:g}' fill='{fill}'/>"


def picture(width: int, height: int, title: str, *shapes: str) -> str:
    """Return a whole picture; the title is for those who cannot see it."""
    inner = "\n".join(shapes)
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' {FONT}"
        f" role='img'>\n<title>{escape(title)}</title>\n"
        f"{rect(0, 0, width, height, fill=PAPER)}\n{inner}\n</svg>\n"
    )
