"""One replica in the foreground, without a supervisor: what a container or a systemd unit runs.

configuration → checks → its `Process`: registry on NATS, databases on PostgreSQL → ready
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from synchromesh.runtime import RealRuntime
from synchromesh.service import KEEP_S
from synchromesh.system.config.databases import check_engines
from synchromesh.system.config.definitions import (
    check_keep,
    load_applications,
    load_services,
    retention_of,
)
from synchromesh.system.config.policy_check import check_policies
from synchromesh.system.config.rundir import RunDir
from synchromesh.system.config.schema import SystemConfig
from synchromesh.system.config.secrets import system_keys
from synchromesh.system.config.spread import alone, check_spread
from synchromesh.system.host.admin import refuse_taken
from synchromesh.system.host.extras import refuse_missing
from synchromesh.system.host.process import Process, spare_collector, stopping
from synchromesh.system.host.waits import unless
from synchromesh.system.supervise.messages import ProcessSpec, key_text

_log = logging.getLogger("synchromesh.system")


def replica_spec(config: SystemConfig, folder: Path, name: str) -> ProcessSpec:
    """Check a system as its supervisor would, and return the spec of one replica.

    Args:
        name: a service, one of its replicas by number, or "gateway".

    Raises:
        ConfigError: the configuration or a definition is wrong, or cannot be run so.
        ContractError: a service does not fit its contract.
    """
    services = load_services(config, folder)
    check_spread(config, services)
    mine, part = alone(config, name, os.uname().nodename)
    for service in services:
        service.check()
    check_keep(services, KEEP_S)
    retention_of(config, services, KEEP_S)
    check_policies(config, services)
    applications = {part.service} & load_applications(config, folder).keys()
    refuse_missing(mine, applications, None)
    check_engines(config, folder)
    keys = system_keys(config.system, RunDir(folder), folder, os.environ)
    return ProcessSpec(
        part.name,
        mine,
        key_text(keys),
        control="",
        token=secrets.token_urlsafe(32),
    )


async def run_replica(
    spec: ProcessSpec, folder: Path, rundir: RunDir, reread: Callable[[], SystemConfig]
) -> str:
    """Run a replica until SIGTERM, and drain it; a second one cuts the drain short.

    Args:
        reread: reads the configuration of the system as it is now.

    Its log is on stdout, as JSON lines. Returns why it failed, "" where it did not.

    Raises:
        ConfigError, StoreError, ContractError, DiscoveryError: it cannot be started.
    """
    process = Process(spec, folder, RealRuntime(), say=lambda _: None)
    host = process.host
    host.rundir = rundir
    node = os.uname().nodename
    with stopping() as (stop, hurry):
        try:
            rundir.create()
            host.exit.callback(rundir.lock(host.runtime.disk, spec.name).release)
            host.begin_log(is_to_stdout=True)
            # Whoever has its port would be asked in its place.
            refuse_taken(spec.config.admin)
            process.drain = stop.set
            if not await unless(stop, process.start()):
                return ""
            host.local.reread = lambda: alone(reread(), spec.name, node)[0]
            _log.info("%s serves at %s; admin: %s", spec.name, host.urls[spec.name], host.admin.url)
            spare_collector()
            failure = await process.wait(stop)
            await process.stop(hurry)
        finally:
            await host.close()
        return failure
