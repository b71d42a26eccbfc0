"""The tables of sagas in the service's database."""

from __future__ import annotations

from synchromesh.store import Migration, Schema

SCHEMA = Schema(
    owner="synchromesh.saga",
    migrations=(
        Migration(
            version=1,
            statements=(
                (
                    "create table sm_saga(id text primary key, name text not null, "
                    "version integer not null, lock_key text, digest text not null, "
                    "input {blob} not null, status text not null, reason text not null, "
                    "owner text not null, trace_id text not null, span_id text not null, "
                    "caller text not null, principal text not null, deadline_us bigint not null, "
                    "result {blob}, started_us bigint not null, ended_us bigint, "
                    "shard integer not null, wake_us bigint, awaits text not null default '')"
                ),
                (
                    "create index sm_saga_unfinished on sm_saga(started_us, status) "
                    "where status in ('queued', 'running', 'compensating', 'waiting')"
                ),
                (
                    "create unique index sm_saga_lock on sm_saga(name, lock_key) where status in "
                    "('queued', 'running', 'compensating', 'waiting', 'sleeping', 'stuck') and "
                    "lock_key is not null"
                ),
                ("create index sm_saga_stuck on sm_saga(started_us) where status = 'stuck'"),
                "create index sm_saga_wake on sm_saga(wake_us) where wake_us is not null",
                "create index sm_saga_started on sm_saga(started_us)",
                (
                    "create index sm_saga_ended on sm_saga(status, ended_us) "
                    "where ended_us is not null"
                ),
                # Of those that have ended there is no end, so that they are counted as they end.
                "create table sm_saga_count(status text primary key, count bigint not null)",
                (
                    "create table sm_saga_record(saga text not null, seq integer not null, "
                    "kind text not null, step text not null, attempt integer not null, "
                    "digest text not null, body {blob} not null, at_us bigint not null, "
                    "primary key(saga, seq)) {keyed}"
                ),
                (
                    "create table sm_saga_signal(seq {position}, saga text not null, "
                    "name text not null, body {blob} not null, at_us bigint not null)"
                ),
                (
                    "create table sm_saga_wish(id text primary key, saga text not null, "
                    "verb text not null, wish {blob} not null, answer {blob}, "
                    "at_us bigint not null)"
                ),
                "create index sm_saga_signal_of on sm_saga_signal(saga, name, seq)",
                "create table sm_saga_epoch(one integer primary key, epoch bigint not null)",
            ),
            readable_by_min=1,
        ),
    ),
)
