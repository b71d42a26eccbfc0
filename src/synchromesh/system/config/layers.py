"""The layers of a configuration: defaults < the file < the environment < flags.

All of them speak of one schema of msgspec structs. A value of the environment or of a flag is a
text, and is read as what the schema says it is; where each value came from is kept.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from urllib.parse import urlsplit

import msgspec

from synchromesh.errors import ConfigError
from synchromesh.spelling import nearest
from synchromesh.system.config.descriptions import describe_error

PREFIX = "SYNCHROMESH_"
FLAG = "--set"

# Marks a text of the schema that only refers to a secret: "env:NAME" or "file:PATH".
Secret = Annotated[str, msgspec.Meta(extra={"is_secret": True})]
# The like for a URL, which may stand there itself as long as no password is in it.
SecretUrl = Annotated[str, msgspec.Meta(extra={"is_secret": True, "is_url": True})]
SECRET_FORMS = ("env:", "file:")

Name = tuple[str, ...]
Source = Literal["default", "file", "environment", "flag"]

_HEADER = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]\s*(#.*)?")
_KEY = re.compile(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")
_SHOWN_MAX = 40


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of a value: its layer, and the line, variable or flag; "" for a default."""

    source: Source
    place: str


class Setting(msgspec.Struct, frozen=True):
    """An effective value with its origin; for a secret, the value is its reference."""

    name: str
    value: Any
    source: Source
    place: str


class Layers:
    """Overrides the values of a file by the environment, and both by flags.

    A table whose names are the user's own (services) takes no new name from a higher layer, for one
    that is written wrong would be a new one; `addable` tells, by table, which names it takes all
    the same, and those of them with a colon are two parts of a variable's name.

    Args:
        data: what the file says; what is laid over it is added here.
    """

    def __init__(
        self, schema: type[msgspec.Struct], path: Path, text: str, data: dict[str, Any]
    ) -> None:
        self.data = data
        self._schema = schema
        self._path = path
        self._lines = lines_of(text)
        self._of_file = frozenset(_names(data, ()))
        self._above: dict[Name, Origin] = {}
        self._addable: Mapping[str, Sequence[str]] = {}
        self._refuse_unknown(data, schema, ())

    def origin(self, name: Name) -> Origin:
        """Return the origin of a value."""
        if name in self._above:
            return self._above[name]
        if name in self._of_file:
            return Origin("file", f"{self._path.name}{self._line(name)}")
        return Origin("default", "")

    def is_written(self, *name: str) -> bool:
        """Say whether a value is in the file, the environment or a flag, and no default."""
        return self.origin(name).source != "default"

    def where(self, *name: str) -> str:
        """Return the place of a value or a section, as messages begin with it."""
        return self._above[name].place if name in self._above else f"{self._path}{self._line(name)}"

    def _line(self, name: Name) -> str:
        """Return ":" and the line of a name, or of what it stands in; "" where it has none."""
        above = (name[:length] for length in range(len(name), 0, -1))
        line = next((self._lines[part] for part in above if part in self._lines), 0)
        return f":{line}" if line else ""

    def places(self, *name: str) -> str:
        """Return where a section is, and which variables and flags set something in it."""
        above = [origin.place for key, origin in self._above.items() if key[: len(name)] == name]
        return ", ".join(dict.fromkeys((self.where(*name), *above)))

    def overlay(
        self,
        environment: Mapping[str, str],
        flags: Sequence[str],
        addable: Mapping[str, Sequence[str]],
    ) -> None:
        """Override the file by variables, and both by flags.

        Raises:
            ConfigError: one of them names nothing, or its value is of the wrong type.
        """
        self._addable = addable
        for variable, text in sorted(environment.items()):
            parts = variable.removeprefix(PREFIX).split("__")
            if variable.startswith(PREFIX) and len(parts) > 1:
                try:
                    self._put(self._name_of(parts), text, Origin("environment", variable))
                except ConfigError:
                    self._refuse_near(variable)
                    raise
        for number, flag in enumerate(flags, 1):
            dotted, equals, text = flag.partition("=")
            if not equals or not dotted:
                # It is not shown: it may be a secret.
                raise ConfigError(
                    f"{FLAG} number {number} is not a setting; write section.key=value, such as "
                    f"{FLAG} services.orders.port=8001"
                )
            name = tuple(dotted.split("."))
            if self.origin(name) == Origin("flag", f"{FLAG} {dotted}"):
                raise ConfigError(f"{FLAG} {dotted} is given twice; leave one out")
            self._put(name, text, Origin("flag", f"{FLAG} {dotted}"))

    def convert(self) -> Any:
        """Convert the merged data to the schema's type.

        Raises:
            ConfigError: a value has the wrong type, or a key or section is missing.
        """
        try:
            config = msgspec.convert(self.data, self._schema)
        except msgspec.ValidationError as error:
            message = self._first_wrong() or str(error)
            place = re.sub(r"\[.*?\]", "", message.partition(": ")[0])
            raise ConfigError(f"{self.where(*place.split('.'))}: {message}") from error
        for name, kind, value in _leaves(config, self._schema, ()):
            if _is_secret(kind) and value and not value.startswith(SECRET_FORMS):
                if kind == SecretUrl and _is_open_url(value):
                    continue
                what = "may have a password" if kind == SecretUrl else "is a secret"
                raise ConfigError(
                    f"{self.where(*name)}: {'.'.join(name)} {what}, which is never written "
                    'there itself; write "env:NAME" or "file:PATH"'
                )
        return config

    def settings(self, config: msgspec.Struct) -> list[Setting]:
        """Return every effective value with its origin, as the schema orders them."""
        return [
            Setting(".".join(name), value, self.origin(name).source, self.origin(name).place)
            for name, _, value in _leaves(config, self._schema, ())
        ]

    def refuse_misspelled(self, environment: Mapping[str, str]) -> None:
        """Raise `ConfigError` for a variable that would be a setting with its parts joined by `__`.

        Others that begin alike are somebody else's, and are left alone.

        Raises:
            ConfigError: there is one; the message has the right name.
        """
        for variable in sorted(environment):
            if variable.startswith(PREFIX) and "__" not in variable:
                self._refuse_near(variable)

    def _refuse_near(self, variable: str) -> None:
        """Raise `ConfigError` for a variable that is a setting's but for its underscores."""
        rest = re.sub("_+", "_", variable.removeprefix(PREFIX)).upper()
        name = self._setting_of(rest, self._schema, self.data, ())
        right = PREFIX + "__".join(name).replace(":", "__").upper()
        if name and right != variable.upper():
            raise ConfigError(f"{variable} sets nothing; did you mean {right}?")

    def _setting_of(self, rest: str, kind: Any, table: Any, name: Name) -> Name:
        """Return the setting whose parts, joined by one underscore, are `rest`; () for none."""
        for key in self._known(kind, table, name) or ():
            own, below = re.sub("[:_]+", "_", key).upper(), _below(kind, key)
            if rest == own and not (_is_struct(below) or _is_table(below)):
                return (*name, key)
            if rest.startswith(f"{own}_"):
                inner = table.get(key) if isinstance(table, dict) else None
                left = rest.removeprefix(f"{own}_")
                if found := self._setting_of(left, below, inner, (*name, key)):
                    return found
        return ()

    def _name_of(self, parts: list[str]) -> Name:
        """Return the setting that a variable names; keys of a table of texts keep their case."""
        name: list[str] = []
        kind: Any = self._schema
        left = list(parts)
        while left:
            if _is_table(kind) and not _is_struct(_values_of(kind)):
                name.append("__".join(left))
                break
            part = left.pop(0).lower()
            if left and any(":" in known for known in self._addable.get(".".join(name), ())):
                part = f"{part}:{left.pop(0).lower()}"
            name.append(part)
            kind = _below(kind, part)
        return tuple(name)

    def _put(self, name: Name, text: str, origin: Origin) -> None:
        kind: Any = self._schema
        table = self.data
        for depth, part in enumerate(name):
            below = self._known(kind, table, name[:depth])
            if below is not None and part not in below:
                raise _unknown(origin.place, ".".join(name[: depth + 1]), part, below)
            kind = _below(kind, part)
            if depth < len(name) - 1:
                inner = table.setdefault(part, {})
                if not isinstance(inner, dict):
                    raise _unknown(origin.place, ".".join(name), name[-1], [])
                table = inner
        if _is_struct(kind) or _is_table(kind):
            keys = ", ".join(self._known(kind, table.get(name[-1], {}), name) or ["a name"])
            raise ConfigError(
                f"{origin.place}: {'.'.join(name)} is a section; set one of its keys: {keys}"
            )
        table[name[-1]] = _read(text, kind, ".".join(name), origin.place)
        self._above[name] = origin

    def _known(self, kind: Any, table: Any, name: Name) -> list[str] | None:
        """Return the keys that a section allows; None for any, [] for none."""
        if _is_struct(kind):
            return list(_fields(kind))
        if not _is_table(kind):
            return []
        if not _is_struct(_values_of(kind)):
            return None
        # What should be a table may be anything in the file; that is told when it is converted.
        there = table if isinstance(table, dict) else ()
        return list(dict.fromkeys((*there, *self._addable.get(".".join(name), ()))))

    def _refuse_unknown(self, data: Any, kind: Any, name: Name) -> None:
        """Raise `ConfigError` for a key that is not in the schema; suggest the nearest one."""
        if not isinstance(data, dict):
            return
        known = list(_fields(kind)) if _is_struct(kind) else None
        for key, value in data.items():
            if known is not None and key not in known:
                place = self.where(*name, key)
                raise _unknown(place, ".".join((*name, key)), key, known)
            if _is_struct(kind) or _is_table(kind):
                self._refuse_unknown(value, _below(kind, key), (*name, key))

    def _first_wrong(self) -> str:
        """Describe the first invalid value by its full path, which msgspec omits in tables."""
        for field in msgspec.structs.fields(self._schema):
            if field.name not in self.data:
                if field.required:
                    return f"the section [{field.name}] is missing"
            elif wrong := _wrong_in(self.data[field.name], field.type, field.name):
                return wrong
        return ""


def lines_of(text: str) -> dict[Name, int]:
    """Return the line of each section and key of a TOML text that is valid.

    What stands inside a value (an inline table, an array) has no line of its own.

    Example:
        >>> lines_of('[a."b:c"]' + chr(10) + 'd = 1')
        {('a', 'b:c'): 1, ('a', 'b:c', 'd'): 2}
    """
    lines: dict[Name, int] = {}
    section: Name = ()
    quotes = ""
    for number, line in enumerate(text.split("\n"), 1):
        if quotes:
            quotes = "" if line.count(quotes) % 2 else quotes
            continue
        if header := _HEADER.fullmatch(line.rstrip("\r")):
            section = _keys(header[1])
            lines.setdefault(section, number)
        elif key := _KEY.match(line):
            lines.setdefault((*section, *_keys(key[1])), number)
            quotes = next((q for q in ('"""', "'''") if line.count(q) % 2), "")
    return lines


def _names(data: Any, name: Name) -> Iterator[Name]:
    """Yield the name of each entry of a table, at any depth."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield (*name, key)
            yield from _names(value, (*name, key))


def _keys(dotted: str) -> Name:
    try:
        table: Any = tomllib.loads(f"{dotted} = 0")
    except tomllib.TOMLDecodeError:
        return ()  # a line inside a longer value that only looks like a key
    name: list[str] = []
    while isinstance(table, dict):
        ((key, table),) = table.items()
        name.append(key)
    return tuple(name)


def _read(text: str, kind: Any, name: str, place: str) -> Any:
    """Parse the text of a variable or flag as the schema's type; a list is written as JSON."""
    try:
        text.encode()
        if get_origin(_bare(kind)) in (list, tuple):
            return msgspec.json.decode(text.encode(), type=kind)
        return msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError as error:
        message = describe_error(str(error), name)
        if not _is_secret(kind):
            message = message.replace("got `str`", f"got {text[:_SHOWN_MAX]!r}")
        raise ConfigError(f"{place}: {message}") from error
    except UnicodeEncodeError:
        raise ConfigError(f"{place}: {name} is not UTF-8 text") from None
    except msgspec.DecodeError as error:
        raise ConfigError(
            f'{place}: {name}: expected a list as JSON, such as ["a", "b"]'
        ) from error


def _wrong_in(value: Any, kind: Any, name: str, example: Any = None) -> str:
    """Describe the first invalid value in one of that name; "" where all are right.

    `example` is a right value, where one is known.
    """
    if isinstance(value, dict) and (_is_struct(kind) or _is_table(kind)):
        for key, inner in value.items():
            below = _below(kind, key)
            if wrong := _wrong_in(inner, below, f"{name}.{key}", _example(kind, key)):
                return wrong
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        if _is_struct(kind) and not isinstance(value, dict):
            return f"{name}: expected {_section_with(value, kind)}"
        if isinstance(example, str) and example and not isinstance(value, str):
            return f'{name}: expected a text such as "{example}", got {value!r}'[:200]
        return describe_error(str(error), name)
    return ""


def _example(kind: Any, key: str) -> Any:
    """Return a right value of a key: of its type's examples, or its default."""
    if not _is_struct(kind):
        return None
    own = next((e for e in msgspec.structs.fields(_bare(kind)) if e.name == key), None)
    if own is None:
        return None
    for each in get_args(own.type) if get_origin(own.type) is Annotated else ():
        if isinstance(each, msgspec.Meta) and each.examples:
            return each.examples[0]
    return own.default


def _section_with(value: Any, kind: Any) -> str:
    """Describe how a section is written that a single value was written for."""
    key, own = next(iter(_fields(kind).items()))
    try:
        msgspec.convert(value, own)
    except msgspec.ValidationError:
        value = _example(kind, key)
    if isinstance(value, str | int | float):
        return f"{{ {key} = {msgspec.json.encode(value).decode()} }}"
    return f"a section with the keys: {', '.join(_fields(kind))}"


def _unknown(place: str, name: str, part: str, known: Iterable[str]) -> ConfigError:
    among = list(known)
    near = nearest(part, among)
    hint = f"did you mean {near!r}?" if near else f"known: {', '.join(among) or 'nothing'}"
    return ConfigError(f"{place}: unknown key {name!r}; {hint}")


def _leaves(value: Any, kind: Any, name: Name) -> Iterator[tuple[Name, Any, Any]]:
    """Yield name, type and value of each setting that is not a section."""
    if isinstance(value, msgspec.Struct):
        for key, below in _fields(kind).items():
            yield from _leaves(getattr(value, key), below, (*name, key))
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, _values_of(kind), (*name, key))
    else:
        yield name, kind, value


def secret_references(config: msgspec.Struct) -> dict[str, str]:
    """Return where each secret of a configuration is, "env:NAME" or "file:PATH", by setting."""
    return {
        ".".join(name): value
        for name, kind, value in _leaves(config, type(config), ())
        if _is_secret(kind) and value.startswith(SECRET_FORMS)
    }


def _bare(kind: Any) -> Any:
    """Return a type without its annotations, and without None."""
    if get_origin(kind) is Annotated:
        return _bare(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return _bare(next(k for k in get_args(kind) if k is not type(None)))
    return kind


def _is_struct(kind: Any) -> bool:
    bare = _bare(kind)
    return isinstance(bare, type) and issubclass(bare, msgspec.Struct)


def _is_table(kind: Any) -> bool:
    return get_origin(_bare(kind)) is dict


def _is_secret(kind: Any) -> bool:
    return kind in (Secret, SecretUrl)


def _is_open_url(text: str) -> bool:
    """Return whether a text is a URL in which there is no password."""
    try:
        parts = urlsplit(text)
        return bool(parts.scheme) and parts.password is None and "password" not in parts.query
    except ValueError:
        return False


def _fields(kind: Any) -> dict[str, Any]:
    return {field.name: field.type for field in msgspec.structs.fields(_bare(kind))}


def _values_of(kind: Any) -> Any:
    return get_args(_bare(kind))[1]


def _below(kind: Any, part: str) -> Any:
    if _is_struct(kind):
        return _fields(kind).get(part)
    return _values_of(kind) if _is_table(kind) else None
