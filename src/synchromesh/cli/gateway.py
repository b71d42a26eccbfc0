"""`synchromesh gateway`: checks and explains the gateway, and manages its API keys."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from synchromesh.cli.actions import say_why, why_option
from synchromesh.cli.config import settings_option
from synchromesh.cli.groups import CommandGroup
from synchromesh.cli.mirror import mirror
from synchromesh.cli.operating import control_of
from synchromesh.cli.output import print_error, print_json, print_line
from synchromesh.durations import duration
from synchromesh.errors import ConfigError
from synchromesh.runtime import RealRuntime
from synchromesh.system.config.rundir import RunDir, user

if TYPE_CHECKING:
    from synchromesh.gateway import ApiKey, Gateway
    from synchromesh.gateway.outlining import RouteOutline
    from synchromesh.system.config.gateway_keys import ApiKeysFile
    from synchromesh.system.config.keys_on_nats import SharedKeysFile
    from synchromesh.system.config.schema import SystemConfig

FINDING, MISTAKE = 1, 2
# An issuer of tokens may take its time, and so may an import.
RELOAD_WITHIN_S = 90.0
EXPIRES_MAX_S = 100 * 365 * 86_400.0


@click.group(cls=CommandGroup)
def gateway() -> None:
    """Check and explain the gateway; manage its API keys."""


@gateway.command(short_help="Check routes, keys and certificates; start nothing.")
@settings_option
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def check(folder: Path, settings: tuple[str, ...], is_json: bool) -> int:
    """Check routes, arguments, services, keys and certificates; start nothing.

    Exits 2 with every mistake.
    """
    import asyncio

    from synchromesh.gateway.arguments import sound
    from synchromesh.gateway.checking import refusal_of
    from synchromesh.system.config.gateway_check import read_gateway
    from synchromesh.system.host.securing import tls_mistakes

    runtime, (config, definition) = RealRuntime(), definition_of(folder, settings)
    reading = asyncio.run(read_gateway(definition, config, RunDir(folder), runtime))
    mistakes = (*reading.mistakes, *tls_mistakes(config, folder, runtime.wall_us() / 1e6))
    routes = len(sound(definition)[0].routes)
    if is_json:
        print_json({"routes": routes, "mistakes": mistakes})
    elif mistakes:
        raise refusal_of(mistakes)
    else:
        print_line(f"all is right with {routes} routes")
    return MISTAKE if mistakes else 0


@gateway.command(short_help="Show routes, who may, and what pages are made of.")
@settings_option
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def explain(folder: Path, settings: tuple[str, ...], is_json: bool) -> int:
    """Show the routes: scopes, rates, times, and the branches of aggregates in their order.

    Exits 2 where it has mistakes.
    """
    from synchromesh.gateway.outlining import outline
    from synchromesh.system.config.edge_policies import policies_of
    from synchromesh.system.config.schema import GATEWAY

    config, definition = definition_of(folder, settings)
    routes = outline(definition, policies_of(config, GATEWAY))
    if is_json:
        import msgspec

        print_json([{**msgspec.to_builtins(route), "who": route.who} for route in routes])
    else:
        _show_routes(routes)
    return 0


def _show_routes(routes: Iterable[RouteOutline]) -> None:
    from rich.text import Text

    from synchromesh.cli.show import console, plain_table

    table = plain_table("route", "leads to", "who may", "rate", "deadline")
    # Routes are there to be copied, so they are not wrapped.
    table.columns[0].no_wrap = True
    for route in routes:
        rate = "" if route.rate is None else f"{route.rate.limit}, bursts of {route.rate.burst}"
        leads_to = route.operation or "an aggregate" + ", all or nothing" * route.is_whole
        if route.fallback:
            leads_to = f"{leads_to}, else {route.fallback}"
        if route.is_strict:
            leads_to = f"{leads_to}, strict"
        if route.cache:
            leads_to = f"{leads_to}, kept: {route.cache}"
        if route.body_max:
            leads_to = f"{leads_to}, bodies of at most {route.body_max}"
        times = ", ".join(filter(None, (route.deadline, route.attempts)))
        table.add_row(*map(Text, (route.route, leads_to, route.who, rate, times)))
        _add_branches(table.add_row, route)
    console().print(table)


def _add_branches(add_row: Any, route: RouteOutline) -> None:
    from rich.text import Text

    for branch in route.branches:
        args = ", ".join(f"{name}={source}" for name, source in branch.args.items())
        how = "required" if branch.is_required else "optional"
        if branch.fallback:
            how = f"{how}, else {branch.fallback}"
        if branch.each:
            how = f"{how}, for each of {branch.each}"
        if branch.pick:
            shown = [f"{n}={of}" if n != of else n for n, of in branch.pick.items()]
            how = f"{how}, shows {', '.join(shown)}"
        if branch.has_empty:
            how = f"{how}, a value for no content"
        add_row(
            Text(f"  {branch.turn}. {branch.name}"),
            Text(f"{branch.operation}({args})"),
            Text(how),
            "",
            Text(", ".join(filter(None, (branch.timeout, branch.attempts)))),
        )


gateway.add_command(mirror)


@gateway.command("reload", short_help="Take up what has changed, without a restart.")
@click.option("--dry-run", "is_dry_run", is_flag=True, help="Show what would change, and stop.")
@why_option
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def reload_gateway(folder: Path, is_dry_run: bool, why: str, is_json: bool) -> int:
    """Take up what has changed of the gateway, whole or not at all, and lose no request.

    That is its sections of synchromesh.toml ([gateway] but for app, host and port, and its
    policies), the module that [gateway] app names, with those that no service imports, and the
    files of certificates. Shows each difference. Exits 1 where nothing was taken for a mistake, and
    names it: an expired certificate, keys of an issuer that cannot be fetched, code that services
    run too. Replicas by `synchromesh run` are found on NATS, and each reads the files of its host:
    all of them take it, or none.
    """
    asked = {"who": user() if is_dry_run else say_why(why), "why": why, "is_dry_run": is_dry_run}
    client = control_of(folder)
    report = client.post("/gateway/reload", asked, within_s=RELOAD_WITHIN_S)
    if is_json:
        print_json(report)
    else:
        _show_reload(report, is_dry_run=is_dry_run)
    return FINDING if report["mistakes"] else 0


def _show_reload(report: dict[str, Any], *, is_dry_run: bool) -> None:
    for change in report["changes"]:
        what, before, after = change["what"], change["before"], change["after"]
        mark = "~" if before and after else "-" if before else "+"
        told = " -> ".join(each for each in (before, after) if each)
        print_line(f"  {mark} {what}  {told}")
    for section in report["left"]:
        print_line(f"  not the gateway's, and left as it runs: {section}")
    if report["mistakes"]:
        click.echo("nothing was changed; mistakes:", err=True)
        for mistake in report["mistakes"]:
            print_error(f"  {mistake}")
    elif not report["changes"]:
        print_line("nothing has changed")
    elif is_dry_run:
        print_line("it can be taken; nothing was changed")
    else:
        print_line("taken")


@gateway.group(short_help="Make, list and remove API keys.")
def key() -> None:
    """Make, list and remove API keys; a running gateway follows within a second."""


@key.command(short_help="Make an API key and print it, this once.")
@click.argument("principal")
@click.option("--scope", "scopes", multiple=True, help="What they may do, such as orders:write.")
@click.option("--expires", default="", help="After how long it ends, such as 30d; never without.")
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def add(folder: Path, principal: str, scopes: tuple[str, ...], expires: str, is_json: bool) -> int:
    """Make an API key for PRINCIPAL and print it once: only its hash is kept.

    A gateway that runs takes it within a second.
    """
    from synchromesh.gateway import make_key

    runtime, (file, asked) = RealRuntime(), _keys_file(folder)
    ends = None
    if expires:
        length_s = duration(expires)
        if length_s > EXPIRES_MAX_S:
            raise ConfigError(f"--expires {expires} is more than 100 years; leave it out for never")
        ends = dt.datetime.fromtimestamp(runtime.wall_us() // 1_000_000 + length_s, dt.UTC)
    text, made = make_key(principal, set(scopes), rng=runtime.secret_rng, expires=ends)
    file.add(made)
    if not scopes and asked:
        click.echo(
            "the key has no scopes, and opens only what asks for none; make one with --scope, "
            f"where routes ask for: {', '.join(sorted(asked))}",
            err=True,
        )
    if is_json:
        print_json({"key": text, **_told(made, runtime)})
        return 0
    # Alone on standard output, so that it can be taken into a variable.
    print_line(text)
    click.echo(
        f"key {made.id} of {principal}, good within a second where the gateway runs; keep it, it "
        "is not shown again",
        err=True,
    )
    for scope in sorted(set(scopes) - asked):
        print_error(f"no route asks for the scope {scope}")
    return 0


@key.command("import", short_help="Bring the keys of a folder to all gateways.")
@click.argument(
    "file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def import_keys(folder: Path, file: Path | None, is_json: bool) -> int:
    """Bring the API keys of this folder, or of FILE, to NATS, where all gateways take them.

    A key that was removed there stays removed.
    """
    from synchromesh.gateway.keys import parse_keys
    from synchromesh.system.config.keys_on_nats import SharedKeysFile

    shared, _ = _keys_file(folder)
    if not isinstance(shared, SharedKeysFile):
        raise ConfigError(
            "the gateway reads its API keys in this folder; there is nothing to bring anywhere "
            "before [engine] nats names a server"
        )
    keys = shared.brought if file is None else parse_keys(file.read_bytes(), str(file)).values()
    shared.add(*keys)
    good = {each.id for each in shared.read()}
    taken = [_told(each, RealRuntime()) for each in keys if each.id in good]
    if is_json:
        print_json(taken)
    else:
        print_line(f"{len(taken)} of {len(keys)} API keys are on NATS now")
    return 0


@key.command("list")
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def list_keys(folder: Path, is_json: bool) -> int:
    """List the API keys by id; the keys themselves are not stored."""
    runtime, (file, _) = RealRuntime(), _keys_file(folder)
    keys = [_told(each, runtime) for each in file.read()]
    if is_json:
        print_json(keys)
    else:
        _show_keys(keys)
    return 0


def _show_keys(keys: Iterable[dict[str, Any]]) -> None:
    from rich.text import Text

    from synchromesh.cli.show import console, plain_table

    table = plain_table("id", "principal", "scopes", "expires")
    for each in keys:
        ends = each["expires"] or "never"
        table.add_row(
            Text(each["id"]),
            Text(each["principal"]),
            Text(", ".join(each["scopes"])),
            Text(f"{ends} (over)" if each["is_expired"] else ends),
        )
    console().print(table)


@key.command(short_help="Remove an API key by its ID.")
@click.argument("key_id", metavar="ID")
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def remove(folder: Path, key_id: str, is_json: bool) -> int:
    """Remove an API key by its ID; it is refused within a second."""
    file, _ = _keys_file(folder)
    removed = file.remove(key_id)
    if is_json:
        print_json(_told(removed, RealRuntime()))
    else:
        print_line(f"removed: {removed.id} of {removed.principal}")
    return 0


def _told(key: ApiKey, runtime: RealRuntime) -> dict[str, Any]:
    return {
        "id": key.id,
        "principal": key.principal,
        "scopes": key.scopes,
        "expires": None if key.expires is None else key.expires.isoformat(),
        "is_expired": key.is_expired(runtime.wall_us()),
    }


@gateway.command("upstream-key", short_help="Print the key by which an upstream verifies who asks.")
@click.argument("upstream", metavar="UPSTREAM")
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def upstream_key(folder: Path, upstream: str, is_json: bool) -> int:
    """Print the key of UPSTREAM, base64url: it verifies Synchromesh-Principal, as HS256.

    It follows from the key of the system, and is another one for each upstream.
    """
    import base64

    from synchromesh.gateway import Forward
    from synchromesh.identity import Signer
    from synchromesh.system.config.secrets import signing_key

    config, definition = _sound_definition_of(folder)
    told = sorted({r.to for r in definition.routes if isinstance(r, Forward) and r.principal})
    if upstream not in told:
        known = ", ".join(told) or "none; write Forward(..., principal=True)"
        raise ConfigError(
            f"no route tells {upstream[:40]!r} who asks; those that are told: {known}"
        )
    rundir = RunDir(folder)
    rundir.create()
    key = signing_key(config.system.key, rundir, folder, os.environ)
    text = base64.urlsafe_b64encode(Signer(key).principal_key(upstream)).rstrip(b"=").decode()
    if is_json:
        print_json({"upstream": upstream, "key": text})
    else:
        print_line(text)
    return 0


def _keys_file(folder: Path) -> tuple[ApiKeysFile | SharedKeysFile, set[str]]:
    """Return where the keys are, and the scopes that routes require."""
    from synchromesh.gateway.names import reserved_prefixes
    from synchromesh.system.config.gateway_keys import keys_file_of
    from synchromesh.system.config.keys_on_nats import SharedKeysFile

    config, definition = _sound_definition_of(folder)
    runtime, rundir = RealRuntime(), RunDir(folder)
    file: ApiKeysFile | SharedKeysFile = keys_file_of(definition, rundir, runtime.disk)
    rundir.create()
    if config.engine.is_shared(rundir.own_nats):
        brought, reserved = file.read(), reserved_prefixes(definition.auth)
        file = SharedKeysFile(config, rundir, runtime.wall_us, brought, reserved)
    return file, {scope for route in definition.routes for scope in route.scopes}


def _sound_definition_of(folder: Path) -> tuple[SystemConfig, Gateway]:
    """Return the same for commands that need no whole gateway: what is of no kind is named."""
    from synchromesh.gateway.arguments import sound
    from synchromesh.gateway.checking import refusal_of

    config, definition = definition_of(folder, ())
    definition, mistakes = sound(definition)
    if mistakes:
        raise refusal_of(mistakes)
    return config, definition


def definition_of(folder: Path, settings: tuple[str, ...]) -> tuple[SystemConfig, Gateway]:
    """Return the configuration of a system, and what its gateway serves.

    Raises:
        ConfigError: it is wrong, or names no gateway.
    """
    from synchromesh.system.config.definitions import load_gateway, load_services
    from synchromesh.system.config.reading import load_config
    from synchromesh.system.config.schema import FILE_NAME

    config = load_config(folder, environment=os.environ, flags=settings)
    load_services(config, folder)
    definition = load_gateway(config, folder)
    if definition is None:
        raise ConfigError(
            f'{FILE_NAME} names no gateway; add a section [gateway] with app = "module:attribute"'
        )
    return config, definition
