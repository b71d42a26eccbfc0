"""`synchromesh openapi`: prints the OpenAPI document of the gateway."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from synchromesh.cli.config import settings_option
from synchromesh.cli.gateway import definition_of
from synchromesh.cli.output import print_line
from synchromesh.errors import ConfigError


@click.command()
@settings_option
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write it to this file, which is replaced whole.",
)
@click.option("--page", is_flag=True, help="The reference page in its place, as HTML.")
@click.pass_obj
def openapi(folder: Path, settings: tuple[str, ...], out: Path | None, page: bool) -> int:
    """Print the OpenAPI document of the gateway.

    It is one of version 3.1, and nothing has to run for it. The same definition has the same bytes,
    to be committed and compared.
    """
    import msgspec

    from synchromesh.gateway import OpenApi, openapi_of
    from synchromesh.gateway.openapi import written
    from synchromesh.gateway.reference import reference_page

    config, gateway = definition_of(folder, settings)
    if gateway.openapi is None:
        gateway = replace(gateway, openapi=OpenApi(title=config.system.name, path=""))
    document = openapi_of(gateway)
    if page:
        text = reference_page(document)
    else:
        text = msgspec.json.format(written(document), indent=2) + b"\n"
    if out is None:
        print_line(text.decode().removesuffix("\n"))
        return 0
    # Beside it first, so that whoever reads the file never sees half of it.
    beside = out.with_name(f".{out.name}.new")
    try:
        beside.write_bytes(text)
        beside.replace(out)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ConfigError(
            f"{out} cannot be written: {error.strerror or error}; name another file with --out"
        ) from error
    return 0
