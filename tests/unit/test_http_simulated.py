"""Server and pool together on the simulated network, under several seeds and bad weather."""

from __future__ import annotations

import asyncio

import pytest

from synchromesh.errors import CallError, ConnectFailed, ConnectionLost, TimedOut
from synchromesh.http import HttpPool, HttpRequest, HttpResponse, HttpServer
from synchromesh.testing import NetworkFaults, SimRuntime, World, run

pytestmark = pytest.mark.usefixtures("http_way")


@pytest.mark.parametrize("seed", range(5))
def test_each_call_gets_its_own_answer(seed: int) -> None:
    """However streams are cut and delayed, answers never change places, and drain loses none."""

    accepted: set[str] = set()

    async def echo(request: HttpRequest) -> HttpResponse:
        accepted.add(request.target)
        await asyncio.sleep(30.0 if len(request.target) == 4 else 0.01)
        return HttpResponse(200, [("x-target", request.target)], request.body)

    async def main(runtime: SimRuntime) -> None:
        server = HttpServer(echo, network=runtime.network)
        await server.start()
        async with HttpPool(network=runtime.network) as pool:

            async def call(number: int) -> None:
                body = str(number).encode() * (number * 37 % 1000)
                response = await pool.request(
                    server_host, server_port, "POST", f"/{number}", body=body, timeout_s=60.0
                )
                assert response.headers.get("x-target") == f"/{number}"
                assert response.body == body

            server_host, server_port = server.host, server.port
            await asyncio.gather(*(call(number) for number in range(100)))
            last = [asyncio.ensure_future(call(number)) for number in range(100, 110)]
            await asyncio.sleep(25.0)
            assert len(accepted) == 110
            cut = await server.drain(60.0)
            await asyncio.gather(*last)
            assert cut == 0

    run(main, seed=seed, faults=NetworkFaults(loss=0.05, latency_max_s=0.05))


@pytest.mark.parametrize("seed", range(5))
def test_a_crash_says_what_is_known(seed: int) -> None:
    """A server that loses its power leaves callers with an unknown outcome, never a wrong one."""
    world = World(seed=seed)
    ran: list[str] = []

    async def handle(request: HttpRequest) -> HttpResponse:
        ran.append(request.target)
        await asyncio.sleep(0.1)
        return HttpResponse(200, (), request.target.encode())

    async def serve(runtime: SimRuntime) -> None:
        await HttpServer(handle, network=runtime.network).start(port=4000)
        await asyncio.Event().wait()

    node = world.node("server", serve)
    node.start()

    async def client() -> None:
        known: list[type[CallError] | None] = []
        async with HttpPool(network=world.network) as pool:
            await asyncio.sleep(0.1)
            for number in range(40):
                if number == 10:
                    world.later(0.05, node.crash, 0.5)
                target = f"/{number}"
                try:
                    response = await pool.request("127.0.0.1", 4000, "GET", target, timeout_s=1.0)
                except CallError as error:
                    known.append(type(error))
                    if isinstance(error, ConnectFailed):
                        assert target not in ran
                        await asyncio.sleep(0.05)
                else:
                    known.append(None)
                    assert response.body.decode() == target
        assert known[:10] == [None] * 10
        assert known[10] in (ConnectionLost, TimedOut)
        assert known[-10:] == [None] * 10

    world.run(client())
