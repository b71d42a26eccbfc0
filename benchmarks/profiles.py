"""Where the time goes in a call, in a gateway under load, and in what `hotspots` has.

    .bench/venv/bin/python -m benchmarks.profiles [call | plain | policies | page | unit | ...]

All of the system runs in one process, and its event loop is profiled from within: functions by
their own time. A profiler makes calls look dearer than they are; compare counts and shares.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from benchmarks import app, gateway_app, hotspots, tools
from benchmarks.gateway_load import Contestant, load
from benchmarks.gateway_policies import KEYS_WITHIN_S
from benchmarks.harness import size
from benchmarks.peers import gateways
from benchmarks.processes import running, synchromesh
from synchromesh import Gateway

SECONDS = size(5, 1)
PATHS = {"plain": "/small", "policies": "/guarded", "page": "/page"}
PROFILES = ("call", *PATHS)

gateway = Gateway(
    auth=gateway_app.gateway.auth,
    routes=[*gateway_app.gateway.routes, *app.gateway.routes],
)
EXTERNAL = """
[external.upstream]
url = "{upstream}"
"""


def main(words: list[str]) -> None:
    """Print the profiles that are asked for, all of them by default."""
    known = (*PROFILES, *hotspots.PROFILES)
    unknown = sorted(set(words) - set(known))
    if unknown:
        sys.exit(f"there is no profile {unknown[0]!r}; there are: {', '.join(known)}")
    for name in (each for each in words or known if each in hotspots.PROFILES):
        print(f"== {name}\n{hotspots.profile(name)}")
    of_system = [each for each in words or known if each in PROFILES]
    if not of_system:
        return
    tools.fetch()
    with tempfile.TemporaryDirectory(prefix="synchromesh-bench-") as made, ExitStack() as enter:
        upstream = enter.enter_context(gateways.upstream(Path(made))[0]).wait()
        config = app.CONFIG.replace("benchmarks.app:gateway", "benchmarks.profiles:gateway")
        config += EXTERNAL.format(upstream=upstream.url)
        system = enter.enter_context(running(config))
        verb = ("gateway", "key", "add", "bench", "--scope", gateway_app.SCOPE, "--json")
        key = {"X-Api-Key": json.loads(synchromesh(system.folder, *verb))["key"]}
        time.sleep(KEYS_WITHIN_S)
        thread = enter.enter_context(ThreadPoolExecutor(1))
        for name in of_system:
            asked = {"operation": "look" if name == "call" else "", "seconds": SECONDS}
            profile = thread.submit(system.ask, "/profile", asked)
            if name != "call":
                url = system.gateway + PATHS[name]
                load(Contestant(name, url, system.server.pid, None, key), SECONDS)
            print(f"== {name}\n{profile.result()}")


if __name__ == "__main__":
    main(sys.argv[1:])
