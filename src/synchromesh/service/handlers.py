"""Runs the operations of a service: once per key, concluded, replayed, and undone.

A command comes in one of three ways, told apart by its service's definition and its headers:

- a unit (`@writes`): its effect and its answer commit together;
- a handler (`@handles`): its first effect records BEGUN with the request, its answer concludes it;
- an undo (`Undoes: key`): it resolves the key it undoes first.

    key is …      undo does …
    unknown       leaves a tombstone; the call, should it still come, has no effect (S7)
    REJECTION     nothing: there was no effect
    TOMBSTONE     nothing: it was undone before
    BEGUN         concludes the call under its own key first, then undoes what it answered
    ANSWER        runs the undo's handler with the recorded answer
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from msgspec.structs import asdict, astuple, replace

from synchromesh.calls import Incoming
from synchromesh.calls.contract import Operation
from synchromesh.codec import (
    NO_FIT,
    NO_JSON,
    decode,
    decoder_of,
    digest,
    encode,
    encoder_of,
    unfit,
)
from synchromesh.context import CallContext
from synchromesh.errors import (
    BadRequest,
    ContractError,
    DownstreamFailed,
    Fenced,
    InProgress,
    KeyReused,
    NotExecuted,
    Rejection,
    SagaUndone,
)
from synchromesh.identity import Principal
from synchromesh.sealing import open_sealed
from synchromesh.service.context import (
    Context,
    HandlerDeps,
    RunningCommand,
    answer_place,
    recorded_error,
    request_place,
)
from synchromesh.service.definition import HandlerDefinition, Service
from synchromesh.store import InboxState, Once, Recorded, Unit, inbox


class Begun(msgspec.Struct, frozen=True):
    """The request of a command that has begun, as its inbox record keeps it."""

    operation: str
    arguments: msgspec.Raw
    principal: Principal
    trace_id: str


@dataclass(frozen=True, slots=True)
class _Run:
    """A keyed handler that runs in this process: others under the key wait for it.

    It concludes with None where it was cancelled.
    """

    digest: str
    concluded: asyncio.Future[Recorded | None]


class Operations:
    """Runs the operations of one service instance; `handlers` go into its dispatcher."""

    def __init__(self, service: Service, deps: HandlerDeps) -> None:
        self._service = service
        self._deps = deps
        self._runs: dict[tuple[str, str], _Run] = {}

    def handlers(self) -> dict[str, Callable[[Incoming], Awaitable[bytes]]]:
        """Return the handler of each operation by its name.

        It returns the answer's JSON, and raises:
            Rejection: the business no, fresh or recorded.
            KeyReused, KeyUndone, InProgress: what the idempotency key forbids.
            Forbidden: the principal of the call lacks a scope.
        """
        return {
            name: _guarded(
                self._command if handled.operation.is_command else self._query_of(handled),
                handled.scopes,
            )
            for name, handled in self._service.operations.items()
        }

    def _query_of(self, handled: HandlerDefinition) -> Callable[[Incoming], Awaitable[bytes]]:
        """Return the handler of a query: decode, run, encode, in one frame."""
        deps, operation, function = self._deps, handled.operation, handled.function
        decode_arguments = operation.shape.decode
        result_type = operation.shape.result
        encode_result, decode_result = encoder_of(result_type), decoder_of(result_type)
        names = operation.shape.canonical.__struct_fields__
        are_in_order = _takes_in_order(handled.signature, names)
        is_one = are_in_order and len(names) == 1

        async def query(incoming: Incoming) -> bytes:
            try:
                arguments = decode_arguments(incoming.arguments)
            except NO_FIT:
                operation.parse(incoming.arguments)  # says what does not fit, and where
                raise
            ctx = Context(deps, incoming.context, None)
            if is_one:  # as most have it; a star costs as much as a frame
                result = await function(ctx, astuple(arguments)[0])
            elif are_in_order:  # half the price of names
                result = await function(ctx, *astuple(arguments))
            else:
                result = await function(ctx, **asdict(arguments))
            try:
                answer = encode_result(result)
                decode_result(answer)
            except NO_JSON as error:
                raise _no_answer(operation, unfit(result, error)) from error
            return answer

        return query

    async def _command(self, incoming: Incoming) -> bytes:
        handled = self._service.operations[incoming.operation.name]
        if not incoming.context.key:
            # Whoever sends no key cannot ask again; the call itself still has one.
            key = self._deps.runtime.new_id()
            incoming = replace(incoming, context=replace(incoming.context, key=key))
        if incoming.context.undoes:
            recorded = await self._undo(handled, incoming)
        elif handled.is_unit:
            recorded = await self._unit(handled, incoming)
        else:
            recorded = await self._keyed(handled, incoming)
        if recorded.kind is not InboxState.ANSWER:
            raise recorded_error(recorded, handled.operation.raises)
        if handled.operation.shape.personal_result is None:
            return recorded.body
        context = incoming.context
        return self._opened(recorded.body, answer_place(context.caller, context.key))

    def _opened(self, body: bytes, where: str) -> bytes:
        return open_sealed(body, where, self._deps.store.vault)

    async def _unit(self, handled: HandlerDefinition, incoming: Incoming) -> Recorded:
        arguments = handled.operation.parse(incoming.arguments)
        return await self._deps.store.write_once(
            lambda unit: self._run_unit(unit, handled, incoming.context, arguments),
            self._once(incoming),
            name=handled.operation.full_name,
        )

    async def _run_unit(
        self,
        unit: Unit,
        handled: HandlerDefinition,
        context: CallContext,
        arguments: dict[str, Any],
    ) -> bytes:
        # A partial is called without a frame of its own, which a closure would have.
        body = partial(handled.function, **arguments)
        try:
            answer = _answer(handled.operation, await self._deps.units.run(unit, context, body))
            personal = handled.operation.shape.personal_result
            if personal is None:
                return answer
            return personal.seal(answer, answer_place(context.caller, context.key), unit.vault)
        except Rejection as rejection:
            _check_declared(rejection, handled.operation)
            raise

    # -- commands that are handled in several units ------------------------------------------------

    async def _keyed(self, handled: HandlerDefinition, incoming: Incoming) -> Recorded:
        """Run a handler under its key, or wait for the run of this process that is under way."""
        place = (incoming.context.caller, incoming.context.key)
        wanted = _digest(incoming)
        while (under_way := self._runs.get(place)) is not None:
            if under_way.digest != wanted:
                raise _reused(incoming.context.key)
            # The run goes on for its own caller; this one may stop waiting.
            concluded = await asyncio.shield(under_way.concluded)
            if concluded is not None:
                return concluded
            # Its caller gave up and nothing is wrong with it: whoever comes first goes on.
        run = _Run(wanted, asyncio.get_running_loop().create_future())
        self._runs[place] = run
        try:
            recorded = await self._conclude(handled, incoming)
        except asyncio.CancelledError:
            run.concluded.set_result(None)
            raise
        except BaseException:
            run.concluded.set_exception(
                InProgress("the call under this key stopped without an answer; ask again")
            )
            run.concluded.exception()  # nobody may be waiting, which is not an error
            raise
        else:
            run.concluded.set_result(recorded)
            return recorded
        finally:
            del self._runs[place]

    async def _conclude(self, handled: HandlerDefinition, incoming: Incoming) -> Recorded:
        once = self._once(incoming)
        known, has_begun = await self._recall(once)
        if known is not None:
            return known
        operation, context = handled.operation, incoming.context
        arguments = operation.parse(incoming.arguments)
        begun = Begun(
            operation.name, msgspec.Raw(incoming.arguments), context.principal, context.trace_id
        )
        running = RunningCommand(
            once.caller, once.key, once.digest, encode(begun), operation.raises,
            operation.shape.personal,
        )  # fmt: skip
        ctx = Context(self._deps, context, running)
        ctx.has_begun = has_begun
        try:
            outcome = await self._outcome(handled, ctx, arguments)
            return await self._deps.store.write_once(
                outcome, once, name=f"conclude {operation.full_name}"
            )
        except Fenced:
            # A unit of an earlier run, which was cancelled, has concluded it meanwhile.
            known, _ = await self._recall(once)
            if known is None:
                raise
            return known
        except NotExecuted as refused:
            if refused.via or not (ctx.has_begun or ctx.is_in_doubt):
                raise
            # Whoever hears `NotExecuted` takes it that nothing was done, and would undo nothing;
            # the database itself refuses the conclusion where too many units wait for it.
            raise DownstreamFailed(
                f"{operation.full_name} stopped half-way: {refused.code}; ask again under its key",
                cause_code=refused.code,
            ) from refused

    async def _outcome(
        self, handled: HandlerDefinition, ctx: Context, arguments: dict[str, Any]
    ) -> Callable[[Unit], Awaitable[bytes]]:
        """Run a handler; return the unit that records its answer or rejection."""
        operation, told, answer = handled.operation, None, b""
        try:
            answer = _answer(operation, await handled.function(ctx, **arguments))
        except Rejection as rejection:
            _check_declared(rejection, operation)
            told = rejection
        except SagaUndone as undone:
            if undone.via:
                raise
            # Its saga has left nothing, and would be the same one under this key for ever.
            told = _UndoneForGood(undone.message)
        finally:
            ctx.end()

        async def conclusion(unit: Unit) -> bytes:
            if told is not None:
                raise told
            personal = operation.shape.personal_result
            if personal is None:
                return answer
            return personal.seal(answer, answer_place(ctx.caller, ctx.key), unit.vault)

        return conclusion

    async def _recall(self, once: Once) -> tuple[Recorded | None, bool]:
        """Return the conclusion recorded under a key, and whether the call has begun."""
        found = await inbox.peek(self._deps.store, once.caller, once.key)
        if found is None:
            return None, False
        if found.kind is not InboxState.BEGUN:
            # The unit returns the conclusion, or says what is wrong with the key.
            known = await self._deps.store.write_once(_never, once, name="recall an answer")
            return known, True
        if found.digest != once.digest:
            raise _reused(once.key)
        return None, True

    # -- undo --------------------------------------------------------------------------------------

    async def _undo(self, handled: HandlerDefinition, incoming: Incoming) -> Recorded:
        context = incoming.context
        place = (context.caller, context.undoes)
        begun = await self._begun(place)
        if begun is not None:
            await self._conclude_begun(begun, context)
        once = self._once(incoming)
        if handled.is_unit:
            return await self._deps.store.write_once(
                lambda unit: self._undo_in(unit, handled, context),
                once,
                name=handled.operation.full_name,
            )
        known = await self._deps.store.write(
            lambda unit: _resolve(unit, place, self._deps.keep_s), name="resolve an undone key"
        )
        if known is None:
            return await self._deps.store.write_once(_nothing, once, name="undo of nothing")
        answer = self._answer_to_undo(handled, known, place)
        undone = replace(incoming, arguments=_argument(handled.operation, answer))
        return await self._keyed(handled, replace(undone, context=replace(context, undoes="")))

    async def _undo_in(self, unit: Unit, handled: HandlerDefinition, context: CallContext) -> bytes:
        place = (context.caller, context.undoes)
        known = await _resolve(unit, place, self._deps.keep_s)
        if known is None:
            return b"null"
        answer = self._answer_to_undo(handled, known, place)
        arguments = handled.operation.parse(_argument(handled.operation, answer))
        return await self._run_unit(unit, handled, context, arguments)

    def _answer_to_undo(
        self, handled: HandlerDefinition, known: Recorded, place: tuple[str, str]
    ) -> bytes:
        # The undo takes what the call answered, so that its type says what is sealed of it.
        is_personal = handled.operation.shape.personal is not None
        return self._opened(known.body, answer_place(*place)) if is_personal else known.body

    async def _begun(self, place: tuple[str, str]) -> Begun | None:
        while (run := self._runs.get(place)) is not None:
            await asyncio.wait([run.concluded])
        found = await inbox.peek(self._deps.store, *place)
        if found is None or found.kind is not InboxState.BEGUN:
            return None
        return decode(found.body, Begun)

    async def _conclude_begun(self, begun: Begun, undo: CallContext) -> None:
        """Run a command that has begun to its conclusion, so that it is known what to undo."""
        handled = self._service.operations.get(begun.operation)
        if handled is None:
            raise ContractError(
                f"{self._service.name}.{begun.operation} has begun under key {undo.undoes!r} and "
                "this release handles it no longer: it cannot be concluded, so it cannot be undone"
            )
        context = replace(
            undo,
            key=undo.undoes,
            undoes="",
            principal=begun.principal,
            trace_id=begun.trace_id,
        )
        incoming = Incoming(
            context.span_id,
            operation=handled.operation,
            arguments=self._begun_arguments(handled, begun, context),
            context=context,
        )
        # A release may have made a unit of what another one began as a handler.
        await (self._unit if handled.is_unit else self._keyed)(handled, incoming)

    def _begun_arguments(
        self, handled: HandlerDefinition, begun: Begun, context: CallContext
    ) -> bytes:
        arguments = bytes(begun.arguments)
        if handled.operation.shape.personal is None:
            return arguments
        return self._opened(arguments, request_place(context.caller, context.key))

    def _once(self, incoming: Incoming) -> Once:
        context = incoming.context
        # An undo is told by what it undoes: its arguments are the participant's own record.
        wanted = digest(b"undo\0" + context.undoes.encode()) if context.undoes else ""
        return Once(context.caller, context.key, wanted or _digest(incoming), self._deps.keep_s)


def _takes_in_order(signature: inspect.Signature, names: tuple[str, ...]) -> bool:
    """Say whether a handler takes its arguments, behind the context, by position in that order."""
    taken = list(signature.parameters.values())[1:]
    are_named = tuple(each.name for each in taken) == names
    return are_named and all(each.kind is each.POSITIONAL_OR_KEYWORD for each in taken)


def _digest(incoming: Incoming) -> str:
    return incoming.operation.digest(incoming.arguments)


def _guarded(
    handle: Callable[[Incoming], Awaitable[bytes]], scopes: frozenset[str]
) -> Callable[[Incoming], Awaitable[bytes]]:
    """Return a handler that refuses principals without a scope; where none is asked for, itself."""
    if not scopes:
        return handle
    needed = sorted(scopes)

    async def guarded(incoming: Incoming) -> bytes:
        incoming.context.principal.require(*needed)
        return await handle(incoming)

    return guarded


def _reused(key: str) -> KeyReused:
    return KeyReused(f"key {key!r} was used before with another input; a new input needs a new key")


def _answer(operation: Operation[..., Any], result: object) -> bytes:
    """Encode an answer; one that violates the contract is a bug, and is not recorded."""
    try:
        answer = encode(result)
        decode(answer, operation.shape.result)
    except BadRequest as error:
        raise _no_answer(operation, error) from error
    return answer


def _no_answer(operation: Operation[..., Any], error: Exception) -> HandlerFault:
    reason = error.message if isinstance(error, BadRequest) else f"the data does not fit: {error}"
    return HandlerFault(f"{operation.full_name} answered what its contract does not say: {reason}")


def _check_declared(rejection: Rejection, operation: Operation[..., Any]) -> None:
    """Raise `HandlerFault` for a rejection that the operation does not declare or cannot encode."""
    # By its code, as it travels: one of a call, or of a record, may be of another class.
    if all(rejection.code != declared.code for declared in operation.raises):
        raise HandlerFault(
            f"{operation.full_name} raised {type(rejection).__name__}, which its contract does not "
            "declare in raises="
        ) from rejection
    try:
        encode(rejection.details)
    except BadRequest as error:
        raise HandlerFault(
            f"{operation.full_name} raised {type(rejection).__name__} with details that cannot be "
            f"told: {error.message}"
        ) from rejection


class _UndoneForGood(Rejection, code=SagaUndone.code, status=SagaUndone.status):
    """Records under a key what asking again is told as: `SagaUndone`."""


class HandlerFault(Exception):
    """Raised when a handler violates its contract; the caller gets `RemoteFailed`."""


async def _resolve(unit: Unit, place: tuple[str, str], keep_s: float) -> Recorded | None:
    """Return the answer to undo; None where there is nothing to undo, now or later."""
    known = await inbox.look_up(unit, *place)
    if known is None:
        await inbox.write_tombstone(unit, *place, keep_s)
        return None
    if known.kind is InboxState.BEGUN:
        raise InProgress("the call that is to be undone still runs; ask again")
    return known if known.kind is InboxState.ANSWER else None


def _argument(operation: Operation[..., Any], answer: bytes) -> bytes:
    """Return the arguments of an undo: its one parameter is the recorded answer."""
    names = operation.shape.arguments.__struct_fields__
    return encode({names[0]: msgspec.Raw(answer)} if names else {})


async def _nothing(_: Unit) -> bytes:
    return b"null"


async def _never(_: Unit) -> bytes:
    raise InProgress("the record of this key has just gone; ask again")
