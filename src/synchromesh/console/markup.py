"""HTML as text in which everything is escaped that is not markup already.

There is one way to make markup, `tag`, and so one place in which a name or a payload could become
more than text. Pages never join markup with plain texts: `+` and f-strings lose its type, and what
lost it is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeAlias


class Markup(str):
    """Text that is markup, and is not escaped again."""

    __slots__ = ()


Child: TypeAlias = "str | int | float | Iterable[Child] | None"
Attribute: TypeAlias = str | int | float | bool | None

NOTHING = Markup()
_VOID = frozenset({"br", "hr", "input", "link", "meta"})
# What no character of a page may be, and no browser shows (HTML, 13.5: control characters).
_ODD = re.compile("[&<>\"'\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_SHOWN = str.maketrans(
    dict.fromkeys(map(chr, (*range(9), 11, 12, *range(14, 32), 127)), "�")
    | {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;"}
)


def escape(text: str) -> Markup:
    """Escape a text for an element or a quoted attribute; markup is left as it is.

    Example:
        >>> escape("<b>'"), escape(Markup("<b>"))
        ('&lt;b&gt;&#x27;', '<b>')
    """
    if isinstance(text, Markup):
        return text
    if not _ODD.search(text):
        return Markup(text)
    # Half a surrogate pair, from a name of a file, cannot be sent.
    return Markup(text.translate(_SHOWN).encode("utf-8", "replace").decode("utf-8"))


def join(children: Iterable[Child]) -> Markup:
    """Join children, texts among them escaped; None is left out."""
    return Markup("".join(map(_child, children)))


def tag(name: str, /, *children: Child, **attributes: Attribute) -> Markup:
    """Make an element.

    Args:
        attributes: "_" in a name stands for "-", and is cut at its end, as in `class_`; None and
            False leave one out, True has no value.

    Example:
        >>> tag("a", "A & B", tag("br"), href="/?q=\\"", class_="big", hidden=False)
        '<a href="/?q=&quot;" class="big">A &amp; B<br></a>'
    """
    opened = f"<{name}"
    for key, value in attributes.items():
        if value is True:
            opened += f" {_name(key)}"
        elif value is not None and value is not False:
            opened += f' {_name(key)}="{escape(str(value))}"'
    if name in _VOID:
        return Markup(f"{opened}>")
    return Markup(f"{opened}>{''.join(map(_child, children))}</{name}>")


def _child(child: Child) -> str:
    if isinstance(child, str):
        return escape(child)
    if child is None:
        return ""
    if isinstance(child, int | float):
        return str(child)
    return join(child)


def _name(key: str) -> str:
    return key.rstrip("_").replace("_", "-")
