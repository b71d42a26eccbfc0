"""The tables of a projection, by generation: SQL with plain names, tables of their own beneath.

A projection that declares its tables is built several times, side by side: each generation has
tables of its own, `demand__1`, `demand__2`. Its function says `demand`, and its statements are
rendered for the generation that they are run for. Everybody else says `demand`, too, and reads the
live one: a view of that name shows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from synchromesh.codec import digest, encode
from synchromesh.errors import ContractError
from synchromesh.sealing import Vault
from synchromesh.store import Row, SqlValue, Unit
from synchromesh.store.unit import Fetched
from synchromesh.tuples import to_tuple

# Literals and comments are passed over; names may be quoted in three ways.
_WORDS = re.compile(
    r"""'(?:[^']|'')*'|--[^\n]*|/\*.*?\*/"""
    r"""|"(?P<double>(?:[^"]|"")*)"|\[(?P<square>[^\]]*)\]|`(?P<back>[^`]*)`"""
    r"""|(?P<plain>[^\W\d][\w$]*)""",
    re.DOTALL,
)
_TABLE = re.compile(r"\s*create\s+table\s+([^\W\d]\w*)\s*\(", re.IGNORECASE)
_INDEX = re.compile(r"\s*create\s+(?:unique\s+)?index\s+([^\W\d]\w*)\s+on\s", re.IGNORECASE)
# What a name of a table or an index stands after.
_BEFORE = frozenset({"table", "index", "on", "references"})
_RENDERED_MAX = 1024


class GenerationTables:
    """The tables of one version of a projection, declared by SQL.

    Args:
        projection: its name, for messages.
        statements: `create table` and `create index`, of plain names.

    Attributes:
        names: the tables.
        digest: tells these tables from others; "" where there are none.

    Raises:
        ContractError: a statement is another one, a name is given twice, or a column has the name
            of a table.

    Example:
        >>> tables = GenerationTables("demand", ["create table demand(day text, qty integer)"])
        >>> tables.render("insert into demand values ('demand', 1)", 2)
        "insert into demand__2 values ('demand', 1)"
    """

    def __init__(self, projection: str, statements: Sequence[str]) -> None:
        self._projection = projection
        self.statements = to_tuple(statements, f"tables= of projection {projection!r}")
        self.names: tuple[str, ...] = ()
        self._renamed: frozenset[str] = frozenset()
        self._rendered: dict[tuple[str, int], str] = {}
        for statement in self.statements:
            table, index = _TABLE.match(statement), _INDEX.match(statement)
            made = table or index
            if made is None:
                raise ContractError(
                    f"projection {projection!r} declares {' '.join(statement.split())[:60]!r} "
                    "among its tables; give `create table NAME(...)` and `create index NAME on "
                    "...`, one statement each"
                )
            name = made[1].lower()
            if name in self._renamed or name.startswith("sm_"):
                raise ContractError(
                    f"projection {projection!r} declares {name!r} twice, or it begins with sm_; "
                    "give each table and index a name of its own"
                )
            self._renamed |= {name}
            if table is not None:
                self.names += (name,)
        for statement in self.statements:
            self._check_columns(statement)
        self.digest = digest(encode(self.statements)) if self.statements else ""

    def render(self, sql: str, generation: int) -> str:
        """Return a statement with the names of a generation's tables."""
        if not self._renamed:
            return sql
        key = (sql, generation)
        found = self._rendered.get(key)
        if found is None:
            if len(self._rendered) >= _RENDERED_MAX:
                self._rendered.clear()
            found = self._rendered[key] = _WORDS.sub(lambda word: self._word(word, generation), sql)
        return found

    def create(self, generation: int) -> Iterator[str]:
        """Yield the statements that make the tables of a generation."""
        for statement in self.statements:
            yield self.render(statement, generation)

    def bind(self, unit: Unit, generation: int) -> Unit:
        """Return a unit whose statements are about the tables of a generation."""
        return _GenerationUnit(unit, self, generation) if self._renamed else unit

    def _word(self, word: re.Match[str], generation: int) -> str:
        name = word[word.lastgroup] if word.lastgroup else ""
        if name.lower() not in self._renamed:
            return word[0]
        return word[0].replace(name, table_of(name, generation))

    def _check_columns(self, statement: str) -> None:
        before = ""
        for word in _WORDS.finditer(statement):
            if word.lastgroup is None:
                continue
            name = word[word.lastgroup].lower()
            if name in self._renamed and before not in _BEFORE:
                raise ContractError(
                    f"projection {self._projection!r}: {name!r} names a table, and a column too; "
                    "rename the column, for the table has another name in each generation"
                )
            before = name

    def __repr__(self) -> str:
        return f"<GenerationTables of {self._projection}: {', '.join(self.names) or 'none'}>"


def table_of(name: str, generation: int) -> str:
    """Return the table that a name stands for in a generation.

    Example:
        >>> table_of("demand", 2)
        'demand__2'
    """
    return f"{name}__{generation}"


class _GenerationUnit:
    """A unit of work in which the names of a projection's tables are those of one generation."""

    __slots__ = ("_generation", "_tables", "_unit")

    def __init__(self, unit: Unit, tables: GenerationTables, generation: int) -> None:
        self._unit = unit
        self._tables = tables
        self._generation = generation

    @property
    def unit_id(self) -> str:
        return self._unit.unit_id

    @property
    def now_us(self) -> int:
        return self._unit.now_us

    @property
    def service(self) -> str:
        return self._unit.service

    @property
    def vault(self) -> Vault:
        return self._unit.vault

    def new_id(self) -> str:
        return self._unit.new_id()

    async def execute(self, sql: str, *values: SqlValue) -> list[Row]:
        return await self._unit.execute(self._tables.render(sql, self._generation), *values)

    async def fetch(self, sql: str, *values: SqlValue) -> Fetched:
        return await self._unit.fetch(self._tables.render(sql, self._generation), *values)

    async def execute_many(self, sql: str, rows: Sequence[Sequence[SqlValue]]) -> None:
        await self._unit.execute_many(self._tables.render(sql, self._generation), rows)

    def notify(self, topic: str) -> None:
        self._unit.notify(topic)
