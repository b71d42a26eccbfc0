"""The errors of a simulation, and the loop's methods that would leave it.

Every way out of the simulation is refused. The list is that of
 `asyncio.AbstractEventLoop`: threads, sockets, pipes, child processes, signals.
"""

from __future__ import annotations

import asyncio
from typing import Any


class SimulationError(Exception):
    """The root of a simulation's own errors."""


class Escape(SimulationError):
    """Raised when code reaches outside the simulation."""


class Deadlock(SimulationError):
    """Raised when nothing is scheduled though the main coroutine has not ended."""


class Livelock(SimulationError):
    """Raised at the bound of steps; most often something spins without waiting."""


class Overdue(SimulationError):
    """Raised when virtual time passes its bound before the main coroutine ends."""


class Leaked(SimulationError):
    """Raised when tasks are still pending when the main coroutine has ended."""


class Unhandled(SimulationError):
    """Raised when the error of a task or callback was never retrieved; the cause is attached."""


def _refusing(name: str) -> Any:
    def refuse(self: Closed, *_: object, **__: object) -> Any:
        error = Escape(
            f"{name}() leads out of the simulation; "
            "use what Runtime offers: disk, network, worker, rng, wall_us"
        )
        self.escaped(error)
        raise error

    refuse.__name__ = name
    return refuse


class Closed(asyncio.AbstractEventLoop):
    """An event loop without real I/O: each method below raises `Escape`."""

    def escaped(self, error: SimulationError) -> None:
        """Record an escape before it is raised."""

    call_soon_threadsafe: Any = _refusing("call_soon_threadsafe")
    run_in_executor: Any = _refusing("run_in_executor")
    set_default_executor: Any = _refusing("set_default_executor")
    getaddrinfo: Any = _refusing("getaddrinfo")
    getnameinfo: Any = _refusing("getnameinfo")
    create_connection: Any = _refusing("create_connection")
    create_server: Any = _refusing("create_server")
    create_unix_connection: Any = _refusing("create_unix_connection")
    create_unix_server: Any = _refusing("create_unix_server")
    create_datagram_endpoint: Any = _refusing("create_datagram_endpoint")
    connect_accepted_socket: Any = _refusing("connect_accepted_socket")
    connect_read_pipe: Any = _refusing("connect_read_pipe")
    connect_write_pipe: Any = _refusing("connect_write_pipe")
    start_tls: Any = _refusing("start_tls")
    sendfile: Any = _refusing("sendfile")
    sock_accept: Any = _refusing("sock_accept")
    sock_connect: Any = _refusing("sock_connect")
    sock_recv: Any = _refusing("sock_recv")
    sock_recv_into: Any = _refusing("sock_recv_into")
    sock_recvfrom: Any = _refusing("sock_recvfrom")
    sock_recvfrom_into: Any = _refusing("sock_recvfrom_into")
    sock_sendall: Any = _refusing("sock_sendall")
    sock_sendto: Any = _refusing("sock_sendto")
    sock_sendfile: Any = _refusing("sock_sendfile")
    add_reader: Any = _refusing("add_reader")
    remove_reader: Any = _refusing("remove_reader")
    add_writer: Any = _refusing("add_writer")
    remove_writer: Any = _refusing("remove_writer")
    add_signal_handler: Any = _refusing("add_signal_handler")
    remove_signal_handler: Any = _refusing("remove_signal_handler")
    subprocess_exec: Any = _refusing("subprocess_exec")
    subprocess_shell: Any = _refusing("subprocess_shell")
    set_task_factory: Any = _refusing("set_task_factory")
    get_task_factory: Any = _refusing("get_task_factory")
