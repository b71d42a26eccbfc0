"""Secrets by reference: the configuration names them, and they are read where they are used.

No message has more of a secret than its length.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from synchromesh.errors import ConfigError
from synchromesh.identity import KEY_BYTES_MIN
from synchromesh.system.config.rundir import RunDir

SECRET_BYTES_MAX = 64 * 1024

_HEX = re.compile(r"[0-9a-fA-F]+")


def read_secret(reference: str, *, name: str, folder: Path, environment: Mapping[str, str]) -> str:
    """Read the secret that "env:NAME" or "file:PATH" refers to, stripped.

    A path that is not absolute begins at the folder. A file may be readable by others: those that
    an orchestrator mounts are, and are guarded otherwise.

    Args:
        name: what the secret is for, for messages.

    Raises:
        ConfigError: there is none, or it is empty, too long or no text.
    """
    kind, _, place = reference.partition(":")
    if kind == "env" and place:
        text = environment.get(place)
        if text is None:
            raise ConfigError(f"{name}: the variable {place} is not set; set it, or use file:PATH")
    elif kind == "file" and place:
        text = _read_file(folder / place, name)
    else:
        raise ConfigError(f'{name} is not a reference; write "env:NAME" or "file:PATH"')
    if not text.strip():
        raise ConfigError(f"{name}: {reference} is empty; put the secret there")
    return text.strip()


def signing_key(
    reference: str, rundir: RunDir, folder: Path, environment: Mapping[str, str]
) -> bytes:
    """Return the signing key: the configured one, or else that of the run directory.

    Raises:
        ConfigError: it is missing, neither hex nor base64, or too short.
    """
    return given_key(reference, folder, environment) if reference else rundir.key()


class KeyReferences(Protocol):
    """Refers to the keys of a system, as its section does."""

    @property
    def key(self) -> str:
        """The one that signs; "" for that of the run directory."""
        ...

    @property
    def accepted_key(self) -> str:
        """The one that is accepted beside it; "" for none."""
        ...


def system_keys(
    system: KeyReferences, rundir: RunDir, folder: Path, environment: Mapping[str, str]
) -> tuple[bytes, ...]:
    """Return the key that signs, and the one that is accepted beside it, where one is.

    Raises:
        ConfigError: one is missing, neither hex nor base64, or too short.
    """
    keys = [signing_key(system.key, rundir, folder, environment)]
    if system.accepted_key:
        name, reference = "system.accepted_key", system.accepted_key
        keys.append(given_key(reference, folder, environment, name=name))
    return tuple(keys)


def given_key(
    reference: str, folder: Path, environment: Mapping[str, str], *, name: str = "system.key"
) -> bytes:
    """Return the key that `[system] key` refers to; raises as `signing_key` does."""
    text = read_secret(reference, name=name, folder=folder, environment=environment)
    key = _decode(text, f"{name}: {reference}")
    if len(key) < KEY_BYTES_MIN:
        raise ConfigError(
            f"{name}: {reference} has {len(key)} bytes, at least {KEY_BYTES_MIN} are needed; make "
            "one with: openssl rand -hex 32"
        )
    return key


def _decode(text: str, place: str) -> bytes:
    """Decode hex where all of it is hex, else base64 of either alphabet."""
    try:
        if _HEX.fullmatch(text):
            return bytes.fromhex(text)
        plain = text.replace("-", "+").replace("_", "/")
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (ValueError, binascii.Error):
        # Without its cause, which may have the text.
        raise ConfigError(
            f"{place} is neither hex nor base64; make one with: openssl rand -hex 32"
        ) from None


def _read_file(path: Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(SECRET_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(
            f"{name}: {path} cannot be read: {error.strerror}; put the secret there"
        ) from error
    if len(data) > SECRET_BYTES_MAX:
        raise ConfigError(f"{name}: {path} is longer than {SECRET_BYTES_MAX} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{name}: {path} is not UTF-8 text; write it as hex or base64") from None
