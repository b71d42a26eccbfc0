"""Units for systemd: a template for each part, and a target that wants all replicas of a host.

The instance of a unit is the port of its admin listener, as in shop-orders@9101.service: no two of
a host may have one port, and none is without.
"""

from __future__ import annotations

import shlex
import stat
from collections.abc import Callable
from pathlib import Path

from synchromesh.errors import ConfigError
from synchromesh.system.config.exports.plan import ADMIN_PORT, DeployedPart, DeploymentPlan

_HARDENED = """\
DynamicUser=yes
UMask=0077
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
PrivateDevices=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
CapabilityBoundingSet=
"""


def _mode_of(path: Path) -> int:
    return path.lstat().st_mode


def files(plan: DeploymentPlan, *, folder: Path, program: list[str]) -> dict[str, str]:
    """Return the files for systemd by name.

    Args:
        folder: where the system is on the host.
        program: the command line there, with its absolute path.

    Raises:
        ConfigError: a part has an admin port of its own, which only one replica of a host could.
    """
    for part in plan.parts:
        if "SYNCHROMESH_ADMIN__PORT" not in part.settings:
            raise ConfigError(
                f"[admin] ports has {part.name!r}, and a unit is named by the admin port of its "
                "replica; leave that out"
            )
    texts = {f"{part.label}@.service": _unit(plan, part, folder, program) for part in plan.parts}
    texts[f"{plan.system}.target"] = _target(plan)
    given = "".join(f"{name}=\n" for name in plan.secrets)
    texts[f"{plan.system}.env.example"] = f"# As /etc/{plan.system}.env, readable by root.\n{given}"
    return texts


def unreadable(*paths: Path, mode_of: Callable[[Path], int] = _mode_of) -> list[str]:
    """Return the folders and files that the user of the units, who is in no group, cannot read.

    Args:
        paths: where the system and its program are; links are followed to their end.
        mode_of: returns the mode of a file, of a link its own.
    """
    found = []
    for path in {each for given in paths for each in (given.absolute(), given.resolve())}:
        if path.is_relative_to("/tmp") or path.is_relative_to("/var/tmp"):  # noqa: S108
            found.append(str(path))  # the units have a folder of their own there
            continue
        needed = dict.fromkeys(reversed(path.parents), stat.S_IXOTH) | {path: stat.S_IROTH}
        found += [str(each) for each, bit in needed.items() if not mode_of(each) & bit][:1]
    return sorted({*found})


def instances(plan: DeploymentPlan) -> list[str]:
    """Return the units of all replicas on a host; the gateway, whose port is one, runs once."""
    ports = iter(range(ADMIN_PORT, ADMIN_PORT + sum(part.replicas for part in plan.parts)))
    return [
        f"{part.label}@{next(ports)}.service"
        for part in plan.parts
        for _ in range(1 if part.is_gateway else part.replicas)
    ]


def _unit(plan: DeploymentPlan, part: DeployedPart, folder: Path, program: list[str]) -> str:
    # What runs is the unit's alone: it is made for it, and removed with it.
    own = f"{part.label}-%i"
    words = [*program, "--folder", str(folder), "run", part.name]
    settings = {**part.settings, "SYNCHROMESH_SYSTEM__NODE": "%H-%i"}
    settings["SYNCHROMESH_ADMIN__PORT"] = "%i"
    given = "".join(f'Environment="{name}={value}"\n' for name, value in settings.items())
    return f"""\
[Unit]
Description=Synchromesh: {part.name} of {plan.system}, admin port %i
Wants=network-online.target
After=network-online.target
PartOf={plan.system}.target
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart={_quoted(words)} --run-dir "%t/{own}"
EnvironmentFile=/etc/{plan.system}.env
{given}RuntimeDirectory={own}
RuntimeDirectoryMode=0700
Restart=always
RestartSec=1s
TimeoutStopSec={plan.stop_s + 5}s
KillMode=mixed
{_HARDENED}
[Install]
WantedBy={plan.system}.target
"""


def _target(plan: DeploymentPlan) -> str:
    wanted = "".join(f"Wants={each}\n" for each in instances(plan))
    return f"""\
[Unit]
Description=Synchromesh: the replicas of {plan.system} on this host
{wanted}
[Install]
WantedBy=multi-user.target
"""


def _quoted(words: list[str]) -> str:
    """Return the words of a command line, whose % and $ stand for themselves."""
    return shlex.join(words).replace("%", "%%").replace("$", "$$")
