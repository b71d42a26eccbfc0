"""Docstrings as Markdown: signatures, the sections that docstrings here have, and examples."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

WIDTH = 88
SECTIONS = {"Args": "Parameters", "Attributes": "Attributes", "Raises": "Raises"}
# A guarantee, such as (O5), leads to its words.
GUARANTEE = re.compile(r"\(([A-Z]\d{1,2}(?:, [A-Z]\d{1,2})*)\)")


def signature_of(value: Callable[..., Any], name: str) -> str:
    """Write a signature as it stands in code, one parameter a line where it is long."""
    before = "class " if inspect.isclass(value) else ""
    if inspect.iscoroutinefunction(inspect.unwrap(value)):
        before = "async def "
    elif not inspect.isclass(value):
        before = "def "
    if inspect.isclass(value) and issubclass(value, BaseException):
        return f"{before}{name}({value.__bases__[0].__name__})"
    # Who subclasses a contract says what it is as arguments of the class.
    subclassed = vars(value).get("__init_subclass__") if inspect.isclass(value) else None
    signature = inspect.signature(subclassed.__func__ if subclassed else value)
    parameters = [_parameter(value, each) for each in _shown(signature)]
    after = _result(signature) if not inspect.isclass(value) else ""
    line = f"{before}{name}({', '.join(parameters)}){after}"
    if len(line) <= WIDTH:
        return line
    inner = "".join(f"    {parameter},\n" for parameter in parameters)
    return f"{before}{name}(\n{inner}){after}"


def _shown(signature: inspect.Signature) -> Iterator[inspect.Parameter | str]:
    is_keyword_only = False
    for parameter in signature.parameters.values():
        if parameter.name in ("self", "cls", "more"):
            continue
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            is_keyword_only = True
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not is_keyword_only:
            is_keyword_only = True
            yield "*"
        yield parameter


def _parameter(value: object, parameter: inspect.Parameter | str) -> str:
    if isinstance(parameter, str):
        return parameter
    stars = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}
    text = stars.get(parameter.kind.name, "") + parameter.name
    if parameter.annotation is not parameter.empty:
        text += f": {_type(parameter.annotation)}"
    if parameter.default is not parameter.empty:
        default = _default(value, parameter)
        text += f" = {default}" if ":" in text else f"={default}"
    return text


def _type(annotation: object) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _default(value: object, parameter: inspect.Parameter) -> str:
    if inspect.isclass(value) and dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            if field.name == parameter.name and field.default_factory is not dataclasses.MISSING:
                return f"{getattr(field.default_factory, '__name__', '')}()"
    shown: object = parameter.default
    if dataclasses.is_dataclass(shown):
        # By its own name, where the module has one for it.
        names = vars(sys.modules[str(getattr(value, "__module__", ""))])
        return next((name for name, named in names.items() if named is shown), repr(shown))
    return "..." if inspect.isroutine(shown) else repr(shown)


def _result(signature: inspect.Signature) -> str:
    if signature.return_annotation is signature.empty:
        return ""
    result = _type(signature.return_annotation)
    return " -> decorator" if result.startswith("Callable[[Callable[") else f" -> {result}"


def markdown_of(docstring: str, up: str) -> str:
    """Turn a docstring into Markdown; `up` leads from the page to the folder of the others."""
    parts: list[str] = []
    lines = inspect.cleandoc(docstring).splitlines()
    while lines:
        head = lines.pop(0)
        title = head.rstrip(":")
        if head == "Example:":
            parts.append(_example(_below(lines)))
        elif head.endswith(":") and title in SECTIONS:
            parts.append(f"**{SECTIONS[title]}**\n\n{_items(_below(lines))}")
        elif not head.strip():
            continue
        elif head.startswith("    "):
            parts.append("```text\n" + "\n".join([head[4:], *_below(lines)]) + "\n```")
        else:
            paragraph = [head]
            while lines and lines[0].strip() and not lines[0].startswith("    "):
                paragraph.append(lines.pop(0))
            parts.append("\n".join(paragraph))
    return GUARANTEE.sub(lambda found: _linked(found[1], up), "\n\n".join(parts))


def _linked(guarantees: str, up: str) -> str:
    return f"([{guarantees}]({up}guarantees.md))"


def _below(lines: list[str]) -> list[str]:
    """Take the indented lines that come first, and return them without their indentation."""
    taken: list[str] = []
    while lines and (lines[0].startswith("    ") or not lines[0].strip()):
        taken.append(lines.pop(0))
    return textwrap.dedent("\n".join(taken)).strip("\n").splitlines()


def _items(lines: list[str]) -> str:
    """Turn `name: what it is`, further lines indented, into a list."""
    items: list[str] = []
    for line in lines:
        if line.startswith(" ") and items:
            items[-1] += f" {line.strip()}"
        elif line.strip():
            names, _, words = line.partition(": ")
            items.append(f"{', '.join(f'`{n}`' for n in names.split(', '))}: {words}")
    return "\n".join(f"- {item}" for item in items)


def _example(lines: list[str]) -> str:
    return "```pycon\n" + "\n".join(lines) + "\n```"


def entry(value: Any, name: str, *, level: int, up: str) -> str:
    """Write what the reference has of one public name: signature, docstring, methods."""
    parts = [f"{'#' * level} `{name}`"]
    if inspect.isclass(value) or inspect.isroutine(value):
        parts.append(f"```py\n{signature_of(value, name)}\n```")
        parts.append(markdown_of(inspect.getdoc(value) or "", up))
    elif dataclasses.is_dataclass(value):
        parts.append(f"```py\n{name} = {value!r}\n```")
    else:
        parts.append(f"A `{type(value).__name__}`.")
    if inspect.isclass(value):
        parts += [
            _member(member, f"{name}.{own}", level + 1, up) for own, member in members_of(value)
        ]
    return "\n\n".join(part for part in parts if part)


def members_of(cls: type) -> list[tuple[str, Any]]:
    """Return the public methods and properties that a class itself defines, in their order."""
    return [
        (name, member)
        for name, member in vars(cls).items()
        if not name.startswith("_")
        and isinstance(member, property | classmethod | staticmethod | type(entry))
    ]


def _member(member: Any, name: str, level: int, up: str) -> str:
    short = name.partition(".")[2]
    if isinstance(member, property):
        kind = signature_of(member.fget or entry, short).partition(" -> ")[2]
        code = f"{short}: {kind}" if kind else short
        doc = member.fget.__doc__ if member.fget else ""
    else:
        function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        code, doc = signature_of(function, short), function.__doc__
        if isinstance(member, classmethod):
            code = f"@classmethod\n{code}"
    return f"{'#' * level} `{name}`\n\n```py\n{code}\n```\n\n{markdown_of(doc or '', up)}"
