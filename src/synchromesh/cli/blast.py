"""`synchromesh blast`: what stops, degrades or waits where a service goes."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from synchromesh.cli import actions
from synchromesh.cli.operating import client_of
from synchromesh.cli.output import print_json, print_line
from synchromesh.errors import ConfigError, SynchromeshError
from synchromesh.spelling import nearest

if TYPE_CHECKING:
    from synchromesh.system.control.blast import Blast
    from synchromesh.telemetry.observed import ObservedCall

RUNS_MAX = 1000
_UNDER_WAY = ("running", "compensating", "sleeping", "queued", "waiting")


@click.command()
@click.argument("service")
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def blast(folder: Path, service: str, is_json: bool) -> int:
    """Show what stops, degrades or waits where SERVICE goes: its own, external or joined.

    Routes, branches, fallbacks, sagas and subscriptions are declared. What handlers call is known
    from the spans that are kept, of a stopped system, too; what was never seen is said to be
    unknown. `synchromesh drill` takes services away to find out.
    """
    from synchromesh.system.config.reading import read_layers
    from synchromesh.system.control.blast import blast as blast_of
    from synchromesh.system.control.declaring import declared_of

    config, _ = read_layers(folder, environment=os.environ, flags=())
    known = (*config.services, *config.external, *config.system.joined)
    if service not in known:
        near = nearest(service, known)
        hint = f"did you mean {near!r}?" if near else f"there are {', '.join(known)}"
        raise ConfigError(f"there is no service {service!r}; {hint}")
    found = blast_of(service, declared_of(config, folder), _observed(folder))
    runs = _runs_under_way(folder, {hit.what for hit in found.hits})
    if is_json:
        print_json({**msgspec.to_builtins(found), "runs": runs})
    else:
        _print(found, runs, config.services[service].replicas if service in config.services else 1)
    return 0


def _observed(folder: Path) -> list[ObservedCall]:
    from synchromesh.telemetry.observed import ObservedCall

    client = client_of(folder)
    if client is not None:
        calls = client.get("/observed")["calls"]
        return msgspec.convert(calls, list[ObservedCall])
    from synchromesh.system.control.stopped import read_observed

    return read_observed(folder)


def _runs_under_way(folder: Path, hit: set[str]) -> dict[str, int]:
    """Return how many runs of the sagas that are hit are under way now; 0 where none ever ran."""
    runs: Counter[str] = Counter()
    with suppress(SynchromeshError):
        for found in actions.read(folder, "saga.list", status="", limit=RUNS_MAX).values():
            for run in found:
                what = f"saga {run['service']}.{run['name']}"
                runs[what] += what in hit and run["status"] in _UNDER_WAY
    return {what: count for what, count in sorted(runs.items()) if count}


def _print(found: Blast, runs: dict[str, int], replicas: int) -> None:
    from rich.text import Text

    from synchromesh.cli.show import console, plain_table

    if replicas > 1:
        print_line(f"{found.service} has {replicas} replicas: this is what follows where all go")
    table = plain_table("what", "effect", "known by", "why")
    for hit in found.hits:
        under_way = f", {runs[hit.what]} runs under way" if hit.what in runs else ""
        table.add_row(Text(hit.what), hit.effect + under_way, hit.by, Text(hit.why))
    if found.hits:
        console().print(table)
    else:
        print_line(f"nothing is known to depend on {found.service}")
    if found.untouched:
        print_line(f"as always: {', '.join(found.untouched)}")
    for line in found.unknown:
        print_line(f"not known: {line}")
