"""The questions about a database that each engine answers by SQL of its own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Dialect:
    """The SQL of one engine.

    Attributes:
        size: one row: the bytes of the database, and how many of them are free.
        tables: the name of each table.
        columns: the name of each column of a table, whose name is the one value.
        table_sizes: each table with its bytes, indexes too; may be refused.
        faults: each lists what is wrong with the database, as texts.
        scan: reads all of a table, `{table}`; "" where `faults` does.
        given: the last position that was given in the log of events.
    """

    size: str
    tables: str
    columns: str
    table_sizes: str
    faults: tuple[str, ...]
    scan: str
    given: str


SQLITE = Dialect(
    size=(
        "select page_count * page_size as used, freelist_count * page_size as free "
        "from pragma_page_count, pragma_page_size, pragma_freelist_count"
    ),
    tables=(
        "select name from sqlite_master where type = 'table' and substr(name, 1, 7) <> 'sqlite_' "
        "order by name"
    ),
    columns="select name from pragma_table_info(?)",
    # Nothing of the kind where SQLite is built without it.
    table_sizes=(
        "select tbl_name, sum(pgsize) from dbstat join sqlite_master using(name) group by 1"
    ),
    faults=(
        """select 'damaged: ' || integrity_check from pragma_integrity_check(20)
        where integrity_check <> 'ok'""",
        """select 'row ' || coalesce(rowid, '?') || ' of ' || "table" || ' refers to a row of '
        || parent || ' that is not there' from pragma_foreign_key_check limit 20""",
    ),
    scan="",
    given="select max(seq) from sqlite_sequence where name = 'sm_event'",
)

POSTGRES = Dialect(
    size="select pg_database_size(current_database()) as used, 0 as free",
    tables="select tablename from pg_tables where schemaname = current_schema() order by 1",
    columns=(
        "select attname from pg_attribute join pg_class on pg_class.oid = attrelid "
        "where relname = ?::name and relnamespace = current_schema()::regnamespace "
        "and attnum > 0 and not attisdropped"
    ),
    table_sizes=(
        "select relname, pg_total_relation_size(oid) from pg_class "
        "where relkind = 'r' and relnamespace = current_schema()::regnamespace"
    ),
    faults=(
        """select 'damaged: index ' || indexrelid::regclass || ' is not valid; reindex it'
        from pg_index where not indisvalid limit 20""",
        """select 'damaged: ' || checksum_failures || ' pages do not have their checksum'
        from pg_stat_database where datname = current_database() and checksum_failures > 0""",
        """select 'constraint ' || conname || ' of ' || conrelid::regclass || ' was never checked; '
        || 'alter table ... validate constraint does' from pg_constraint where not convalidated
        limit 20""",
    ),
    # Every value is fetched, wherever the server keeps it.
    scan="select sum(length(each::text)) from {table} as each",
    given="select last from sm_log where name = 'sm_event'",
)
