"""A universe: nodes that crash and restart, a network that misbehaves, one disk, one seed.

    world = World(seed=7, faults=STORMY)
    orders = world.node("orders", serve_orders)
    orders.start()
    world.run(nemesis(world))
    world.disk.rows("/orders.db", "SELECT count(*) FROM sm_event")

`run` is the small form for unit tests: one coroutine, one process, virtual time, calm weather.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Coroutine
from contextvars import Context
from dataclasses import replace
from typing import Any, TypeVar, TypeVarTuple

from synchromesh.testing.disk import SimDisk
from synchromesh.testing.escapes import Leaked, SimulationError, Unhandled
from synchromesh.testing.loop import SimLoop
from synchromesh.testing.network import SimNetwork
from synchromesh.testing.process import PROCESS, SimProcess, TaskList, describe_tasks
from synchromesh.testing.sim_runtime import SimRuntime
from synchromesh.testing.wire import CALM, NetworkFaults, Wire

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
NodeMain = Callable[[SimRuntime], Coroutine[Any, Any, None]]


class World:
    """One seed's universe; it runs once, then its disk can still be read.

    Args:
        seed: decides everything that is left to chance.
        faults: how the network, workers and clocks misbehave until `heal`.
        steps_max: the bound of steps.

    Attributes:
        rng: chance for the test itself (when to crash whom).
        count: how often rare things happened; a test that relies on one asserts that it did.
        on_step: called with a node before each of its steps; it may crash the node exactly there.

    Example:
        >>> async def beat(runtime: SimRuntime) -> None:
        ...     await asyncio.sleep(1.0)
        ...     world.count[f"beat of life {runtime.epoch}"] += 1
        >>> import asyncio
        >>> world = World(seed=1)
        >>> heart = world.node("heart", beat)
        >>> heart.start()
        >>> _ = world.later(0.5, heart.crash, 0.1)
        >>> world.run(asyncio.sleep(10.0))
        >>> dict(world.count)
        {'crash': 1, 'beat of life 2': 1}
    """

    def __init__(
        self, seed: int | str, *, faults: NetworkFaults = CALM, steps_max: int = 1_000_000
    ) -> None:
        self.seed = seed
        self.loop = SimLoop(seed, steps_max=steps_max)
        self.rng = random.Random(f"{seed}/world")
        self.wire = Wire(random.Random(f"{seed}/wire"), faults)
        self.count: Counter[str] = self.wire.count
        self.disk = SimDisk(random.Random(f"{seed}/disk"))
        self.network = SimNetwork(self.loop, self.wire)
        self.nodes: dict[str, Node] = {}
        self._on_step: Callable[[Node], object] | None = None

    # -- nodes -----------------------------------------------------------------------------------

    def node(self, name: str, main: NodeMain) -> Node:
        """Add a node; each `start` runs `main` anew. Raises ValueError for a duplicate name."""
        if name in self.nodes:
            raise ValueError(f"there is a node {name!r} already")
        node = self.nodes[name] = Node(self, name, main)
        return node

    @property
    def on_step(self) -> Callable[[Node], object] | None:
        """The hook called before each step of a node."""
        return self._on_step

    @on_step.setter
    def on_step(self, hook: Callable[[Node], object] | None) -> None:
        self._on_step = hook
        self.loop.on_step = None if hook is None else self._before_step

    def _before_step(self, process: SimProcess) -> None:
        node = self.nodes.get(process.name)
        if node is not None and self._on_step is not None:
            self._on_step(node)

    # -- messages and weather --------------------------------------------------------------------

    def deliver(self, source: str, target: str, fn: Callable[[], object]) -> None:
        """Run `fn` on the target, in the life it then has, as often as the network delivers it.

        That is never, once or twice; never where the target is down when the message arrives.
        """
        for delay_s in self.wire.delays(source, target):
            self.later(delay_s, self._arrive, target, fn)

    def _arrive(self, target: str, fn: Callable[[], object]) -> None:
        process = self.nodes[target].process
        if process is None:
            self.count["message to a dead node"] += 1
        else:
            self.loop.call_soon(fn, context=process.context.copy())

    def later(self, delay_s: float, fn: Callable[[*Ts], object], *args: *Ts) -> None:
        """Call a function after a delay, outside every node."""
        self.loop.call_later(delay_s, fn, *args, context=Context())

    def partition(self, a: str, b: str, heal_after_s: float | None = None) -> None:
        """Partition two nodes, for a while or until `heal`."""
        self.wire.partition(a, b)
        if heal_after_s is not None:
            self.later(heal_after_s, self.wire.heal, a, b)

    def jump_clocks(self, by_s: float) -> None:
        """Set the wall clocks of all nodes forward, or back where it is negative, all at once."""
        self.wire.jumped_us += int(by_s * 1e6)
        self.count["clock jump"] += 1

    def calm(self) -> None:
        """End all faults of the network and all pauses; late messages still arrive."""
        self.wire.faults = replace(self.wire.faults, loss=0.0, duplication=0.0, tail=0.0)
        self.wire.heal_all()
        for node in self.nodes.values():
            node.resume()

    def heal(self) -> None:
        """End all faults and start every node: from then on the system must make progress."""
        self.calm()
        for node in self.nodes.values():
            node.start()

    # -- running ---------------------------------------------------------------------------------

    def run(self, main: Coroutine[Any, Any, T], *, until_s: float = 3600.0) -> T:
        """Run a coroutine that belongs to no node (a nemesis, a client), then end the universe.

        Raises what `main` raises; `Unhandled` for a failure in a node that nobody was told of;
        `Leaked` where `main` left tasks behind; `Deadlock`, `Livelock`, `Overdue`.
        """
        if self.loop.is_closed():
            main.close()
            raise SimulationError("a world runs once; make another one")
        try:
            return _run(self.loop, Context(), main, until_s=until_s)
        finally:
            self.close()

    def close(self) -> None:
        """End the universe by a power cut everywhere; the disk is kept for audits."""
        for node in self.nodes.values():
            node.end_life()
        self.disk.close()
        self.loop.close()


class Node:
    """A machine of a world: it can be started, killed, paused, and restarted.

    Example:
        >>> async def main(runtime: SimRuntime) -> None: ...
        >>> World(seed=1).node("orders", main)
        <Node orders epoch 0 down>
    """

    def __init__(self, world: World, name: str, main: NodeMain) -> None:
        self.name = name
        self.process: SimProcess | None = None
        self.epoch = 0
        self._world, self._main = world, main
        self._steps = 0
        skew_s = world.wire.faults.skew_s * (2.0 * world.wire.rng.random() - 1.0)
        self._skew_us = int(skew_s * 1e6)

    def __repr__(self) -> str:
        return f"<Node {self.name} epoch {self.epoch} {'up' if self.is_up else 'down'}>"

    @property
    def is_up(self) -> bool:
        """Whether it runs or is paused."""
        return self.process is not None

    @property
    def steps(self) -> int:
        """The number of steps in all its lives."""
        return self._steps if self.process is None else self.process.steps

    @property
    def sends(self) -> int:
        """How often it has written to a connection in this life; 0 while it is down."""
        return 0 if self.process is None else self.process.sends

    def start(self) -> None:
        """Start a new life that runs `main`; does nothing while it is up."""
        world = self._world
        if self.process is not None or world.loop.is_closed():
            return
        self.epoch += 1
        process = world.loop.new_process(self.name, epoch=self.epoch, steps=self._steps)
        self.process = process
        runtime = SimRuntime(
            process,
            seed=world.seed,
            disk=world.disk,
            network=world.network,
            wire=world.wire,
            clock=world.loop.time,
            skew_us=self._skew_us,
        )
        world.loop.spawn(process, self._main(runtime))

    def crash(self, restart_after_s: float | None = None) -> None:
        """Cut the node's power before its next step; does nothing while it is down.

        Called by the node itself it takes effect at the end of the step that now runs.
        """
        process = self.process
        if process is None:
            return
        if PROCESS.get() is process:
            self._world.loop.after_step(lambda: self._die(process, restart_after_s))
        else:
            self._die(process, restart_after_s)

    def _die(self, process: SimProcess, restart_after_s: float | None) -> None:
        if self.process is not process:
            return
        world = self._world
        world.count["crash"] += 1
        self._steps, self.process = process.steps, None
        world.loop.kill(process)
        world.network.crash(process)
        world.disk.crash(process)
        if restart_after_s is not None:
            world.later(restart_after_s, self.start)

    def pause(self, resume_after_s: float | None = None) -> None:
        """Pause the node as SIGSTOP would; messages wait for it."""
        if self.process is not None:
            self._world.count["pause"] += 1
            self._world.loop.pause(self.process)
            if resume_after_s is not None:
                self._world.later(resume_after_s, self.resume)

    def resume(self) -> None:
        """Resume the node after a pause."""
        if self.process is not None:
            self._world.loop.resume(self.process)

    def end_life(self) -> None:
        """End the node's life with the universe."""
        if self.process is not None:
            self._steps = self.process.steps
            self._world.loop.kill(self.process)
            self.process = None


def run(
    main: Callable[[SimRuntime], Coroutine[Any, Any, T]],
    *,
    seed: int | str = 0,
    until_s: float = 3600.0,
    steps_max: int = 1_000_000,
    faults: NetworkFaults = CALM,
) -> T:
    """Run a coroutine function in one simulated process, in virtual time, and return its result.

    `main` is given the process's `SimRuntime`. Raises what `main` raises; `Leaked` where it left
    tasks behind; `Unhandled` where a callback or task failed and nobody was told; `Deadlock`,
    `Livelock`, `Overdue` where it does not end.

    Example:
        >>> async def main(runtime: SimRuntime) -> int:
        ...     before = runtime.wall_us()
        ...     await asyncio.sleep(60.0)
        ...     return (runtime.wall_us() - before) // 1_000_000
        >>> import asyncio
        >>> run(main)
        60
    """
    loop = SimLoop(seed, steps_max=steps_max)
    wire = Wire(random.Random(f"{seed}/wire"), faults)
    disk = SimDisk(random.Random(f"{seed}/disk"))
    process = loop.new_process("main")
    network = SimNetwork(loop, wire)
    runtime = SimRuntime(process, seed=seed, disk=disk, network=network, wire=wire, clock=loop.time)
    try:
        return _run(loop, process.context.copy(), main(runtime), until_s=until_s)
    finally:
        disk.close()
        loop.close()


def _run(loop: SimLoop, context: Context, main: Coroutine[Any, Any, T], *, until_s: float) -> T:
    """Run `main` to its end, and check for leaked tasks and unhandled failures."""
    loop.until_s = until_s
    task = loop.create_task(main, context=context)
    process = context.get(PROCESS)
    tasks: TaskList = loop.tasks if process is None else process.tasks
    try:
        result = loop.run_until_complete(task)
    except SimulationError as error:
        # What failed silently before is likelier the cause than that nothing goes on now.
        for failure in _silent_failures(loop):
            if failure is not error:
                failure.add_note(f"in the end: {error}")
                raise failure from failure.__cause__
        raise
    except Exception as error:
        for failure in _silent_failures(loop):
            error.add_note(f"before that: {failure}")
        raise
    loop.run_ready()
    for failure in _silent_failures(loop):
        raise failure
    leaked = tasks.pending()
    if leaked:
        raise Leaked(
            f"{len(leaked)} tasks were left behind: {describe_tasks(leaked)}; "
            "await or cancel what was started"
        )
    return result


def _silent_failures(loop: SimLoop) -> list[SimulationError]:
    """Return the unhandled failures, those of crashed lives included."""
    failures: list[SimulationError] = []
    for context in loop.errors:
        error = context.get("exception")
        if isinstance(error, SimulationError):
            failures.append(error)
        else:
            failures.append(_unhandled(f"{context.get('message')}: {error!r}", error))
    for name, tasks in [("", loop.tasks), *((p.name, p.tasks) for p in loop.processes)]:
        tasks.pending()
        owner = name or "the world"
        failures += [
            _unhandled(f"a task of {owner!r} failed: {error!r}", error) for error in tasks.failures
        ]
    return failures


def _unhandled(message: str, cause: BaseException | None) -> Unhandled:
    error = Unhandled(message)
    error.__cause__ = cause
    return error
