"""The tables of the events room in a service's database."""

from __future__ import annotations

from synchromesh.store import Migration, Schema

SCHEMA = Schema(
    owner="synchromesh.events",
    migrations=(
        Migration(
            version=1,
            statements=(
                (
                    "create table sm_event(position {log_position}, id text not null, "
                    "stream text not null, version bigint not null, name text not null, "
                    "type_version bigint not null, body {blob} not null, "
                    "is_public integer not null, ordering_key text not null, "
                    "trace_id text not null, recorded_us bigint not null, "
                    "readable_by_min bigint not null default 1, "
                    "head text generated always as "
                    "({json_array}(id, stream, version, name, type_version, is_public, "
                    "ordering_key, trace_id, recorded_us, readable_by_min)) stored, "
                    "unique(stream, version))"
                ),
                "create index sm_event_public on sm_event(position) where is_public = 1",
                "create table sm_removal(first bigint primary key, last bigint not null)",
                "create index sm_removal_last on sm_removal(last)",
                (
                    "create table sm_checkpoint(name text primary key, log_id text not null, "
                    "position bigint not null)"
                ),
                (
                    "create table sm_snapshot(stream text not null, digest text not null, "
                    "version bigint not null, event text not null, state {blob} not null, "
                    "taken_us bigint not null, primary key(stream, digest))"
                ),
                (
                    "create table sm_projection(name text not null, number bigint not null, "
                    "version bigint not null, digest text not null, tables text not null, "
                    "is_live integer not null, is_waiting integer not null, "
                    "made_us bigint not null, retries bigint not null, parked text not null, "
                    "primary key(name, number))"
                ),
                (
                    "create table sm_projection_skip(name text not null, number bigint not null, "
                    "position bigint not null, primary key(name, number, position))"
                ),
            ),
            readable_by_min=1,
        ),
    ),
)
