"""`key`: one function that calls many hosts has an edge for each of them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from synchromesh import Policy
from synchromesh.errors import CircuitOpen, ConfigError
from synchromesh.resilience import BreakerOptions, LimitOptions, keyed
from synchromesh.testing import run

OPENS = BreakerOptions(minimum_calls=2, open_for_s=5.0, open_for_max_s=5.0)
BREAKER = Policy(timeout_s=None, retry=None, breaker=OPENS)
ILL = ("ill.example", "lame.example")


def host_of(url: str) -> str:
    return url.split("/")[2]


async def _fetch(url: str) -> str:
    if host_of(url) in ILL:
        raise ConnectionError(url)
    return url


def _fetch_sync(url: str) -> str:
    if host_of(url) in ILL:
        raise ConnectionError(url)
    return url


def ends(fn: Callable[[str], Any], urls: list[str]) -> list[str]:
    async def main() -> list[str]:
        seen = []
        for url in urls:
            try:
                answer = fn(url)
                seen.append(answer if isinstance(answer, str) else await answer)
            except (ConnectionError, CircuitOpen) as error:
                seen.append(type(error).__name__)
        return seen

    return run(lambda _: main())


@pytest.mark.parametrize("fn", [_fetch, _fetch_sync], ids=["async", "sync"])
def test_a_host_that_is_ill_closes_the_door_of_no_other(fn: Callable[[str], Any]) -> None:
    """A host that is ill closes the door of no other."""
    guarded = BREAKER.wrap(fn, key=host_of)
    well = "http://well.example/1"
    urls = [f"http://ill.example/{n}" for n in range(3)] + [well, "http://lame.example/", well]
    assert ends(guarded, urls) == [
        *("ConnectionError", "ConnectionError", "CircuitOpen"),
        *(well, "ConnectionError", well),
    ]
    # Without a key they have one breaker.
    assert ends(BREAKER.wrap(fn), urls)[2:] == ["CircuitOpen"] * 4


def test_the_error_says_which() -> None:
    """The error says which."""
    guarded = BREAKER.wrap(_fetch, name="fetch", key=host_of)
    ends(guarded, ["http://ill.example/"] * 2)

    async def main() -> None:
        with pytest.raises(CircuitOpen, match=r"fetch \[ill\.example\]"):
            await guarded("http://ill.example/")

    # The breaker is of its loop: here it is closed again.
    assert ends(guarded, ["http://ill.example/"]) == ["ConnectionError"]

    async def again() -> None:
        for _ in range(2):
            with pytest.raises(ConnectionError):
                await guarded("http://ill.example/")
        await main()

    run(lambda _: again())


def test_each_key_has_places_of_its_own() -> None:
    """Each key has places of its own."""
    policy = Policy(timeout_s=None, retry=None, limit=LimitOptions(in_flight_max=1))
    under_way: list[str] = []

    @policy.wrap(key=lambda host: host)
    async def hold(host: str) -> None:
        under_way.append(host)
        await asyncio.sleep(1.0)

    async def main() -> list[str]:
        calls = [hold(host) for host in ("a", "b", "a")]
        ended = await asyncio.gather(*calls, return_exceptions=True)
        return [type(each).__name__ for each in ended]

    assert sorted(run(lambda _: main())) == ["NoneType", "NoneType", "Shed"]
    assert sorted(under_way) == ["a", "b"]


def test_a_method_tells_its_key_by_its_instance() -> None:
    """A method tells its key by its instance."""

    class Client:
        def __init__(self, host: str) -> None:
            self.host = host

        @BREAKER.wrap(key=lambda self, path: self.host)
        async def get(self, path: str) -> str:
            return await _fetch(f"http://{self.host}{path}")

    ill, well = Client("ill.example"), Client("well.example")
    assert ends(ill.get, ["/"] * 3)[2] == "CircuitOpen"
    assert ends(well.get, ["/"]) == ["http://well.example/"]
    assert Client.get.__name__ == "get"


def test_the_number_of_edges_is_bounded_and_the_longest_unused_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is called again and again keeps what it knows, however many others come and go."""
    monkeypatch.setattr(keyed, "KEYS_MAX", 3)
    made: list[str] = []

    def make(name: str) -> Callable[[str], str]:
        made.append(name)
        return lambda given: given

    held = keyed.Keyed(make, lambda given: given, "f")
    for number in range(100):
        assert held.of("often")("x") == "x"
        held.of(str(number))
    assert made.count("f [often]") == 1
    assert len(made) == 101
    assert len(held._by_key) == 3


def test_calls_under_way_outlive_their_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls under way outlive their edge."""
    monkeypatch.setattr(keyed, "KEYS_MAX", 1)

    @Policy(timeout_s=None, retry=None).wrap(key=lambda host: host)
    async def hold(host: str) -> str:
        await asyncio.sleep(1.0)
        return host

    async def main() -> list[str]:
        return await asyncio.gather(*(hold(str(number)) for number in range(5)))

    assert run(lambda _: main()) == ["0", "1", "2", "3", "4"]


def test_threads_at_once_make_one_edge_for_a_key() -> None:
    """Threads at once make one edge for a key."""
    made: list[str] = []
    start = threading.Barrier(8)

    def make(name: str) -> Callable[[str], str]:
        made.append(name)
        return lambda given: given

    held = keyed.Keyed(make, lambda given: given, "f")

    def call() -> None:
        start.wait(10.0)
        for number in range(200):
            held.of(str(number % 10))

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
    assert sorted(made) == [f"f [{number}]" for number in range(10)]


def test_a_key_that_cannot_be_one_is_refused() -> None:
    """A key that cannot be one is refused."""
    wrong: Any = lambda url: [url]  # noqa: E731
    guarded = BREAKER.wrap(_fetch, name="fetch", key=wrong)

    async def main() -> None:
        with pytest.raises(ConfigError, match=r"of a call of fetch is .* hashed"):
            await guarded("http://well.example/")

    run(lambda _: main())


def test_what_cannot_be_guarded_is_refused_at_decoration_with_a_key_too() -> None:
    """What cannot be guarded is refused at decoration with a key too."""
    with pytest.raises(ConfigError, match="timeout_s=None"):
        Policy().wrap(_fetch_sync, key=host_of)
