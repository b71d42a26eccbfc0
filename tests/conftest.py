"""What every test shares."""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import Phase, settings

from synchromesh.http import HttpPool, HttpServer
from synchromesh.runtime import RealRuntime
from synchromesh.system import loop_factory
from synchromesh.system.host.process import COLLECT_EVERY

SERVO_WORKS = Path(__file__).parents[1] / "src/synchromesh/examples/servo_works"

# Its modules are imported as its own folder names them. Last on the path, they hide nothing.
if str(SERVO_WORKS) not in sys.path:
    sys.path.append(str(SERVO_WORKS))

# What a shell starts in the background ignores Ctrl-C, and hands that on to all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no failure, and a failure is the same one each time.
settings.register_profile("house", deadline=None, derandomize=True)
settings.register_profile(
    "hunt", settings.get_profile("house"), phases=(Phase.explicit, Phase.generate)
)
settings.load_profile("house")

# `make test LOOP=uvloop`: every real loop that is not asked for by name is the product's of uvloop.
if (LOOP := os.environ.get("SYNCHROMESH_TEST_LOOP", "asyncio")) != "asyncio":
    asyncio.events.new_event_loop = loop_factory(LOOP)  # what `asyncio.Runner` makes one by

# What takes longest comes first where workers share the tests, so that none is left alone with it.
LONGEST_FIRST = ("simulation", "e2e", "integration", "property")
LONGEST = ("test_servo_works.py", "test_typing.py", "test_mutants.py", "test_cascade.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests of a worker by their folders."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        ranks = {folder: rank for rank, folder in enumerate(LONGEST_FIRST)}
        items.sort(
            key=lambda item: (
                LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST),
                ranks.get(item.path.parent.name, len(ranks)),
            )
        )


def pytest_collection_finish() -> None:
    """Leave what thousands of collected tests are made of out of every later collection.

    And collect as seldom as a process of the product does.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_EVERY)


def pytest_runtest_setup() -> None:
    """Undo what a process did to signals as it ended: here a test follows, and its children."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGHUP, signal.SIGINT})


def pytest_sessionfinish() -> None:
    """Stop the engines of this process, if a test has started them."""
    if (postgres := sys.modules.get("postgres_server")) is not None:
        postgres.close_shared_server()
    if (nats := sys.modules.get("nats_server")) is not None:
        nats.close_shared_nats()


@pytest.fixture
def anyio_backend() -> str:
    """Async tests that need real sockets or threads run on asyncio."""
    return "asyncio"


@pytest.fixture
async def pool() -> AsyncIterator[HttpPool]:
    """Real connections, for a test on asyncio."""
    async with HttpPool(network=RealRuntime().network) as pool:
        yield pool


@pytest.fixture(scope="module", params=["fast", "slow"])
def http_way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Let the servers of a module take the fast way, and in a second run of it the slow one."""
    way: str = request.param
    defaults = HttpServer.__init__.__kwdefaults__
    assert defaults is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(defaults, "is_fast", way == "fast")
        yield way
