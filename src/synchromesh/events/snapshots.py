"""Snapshots: the state of a stream kept at a version, so that only what came after it is folded.

A snapshot saves time and never decides anything: it equals the replay of its events (E6), or it is
not used. It is found by the stream and a digest of all that makes the state what it is: the state's
schema, the decider's version, the code of its `evolve` and the versions of its events. So one that
another release took, or one of a future that a restore undid, is passed over and made anew.

Source: Young, "CQRS Documents", 2010, "Rolling Snapshots".
"""

from __future__ import annotations

import asyncio
import logging
import typing
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import lru_cache, partial
from types import CodeType
from typing import Any, Generic, TypeVar

import msgspec

from synchromesh.codec import NO_FIT, decoder_of, digest, encode
from synchromesh.errors import BadRequest
from synchromesh.events.decider import Decider
from synchromesh.events.log import StoredEvent, executor, load
from synchromesh.events.types import EventTypes
from synchromesh.events.versions import EventVersions
from synchromesh.personal_types import personal_fields
from synchromesh.sealing import Vault, open_sealed
from synchromesh.store import SqlValue, Store, Unit

S = TypeVar("S")

FOLD_MAX = 1000
"""Events that a unit folds at most; a longer tail is folded before it, while others may write."""

_PAGE = 256
_SAVE_EVERY = 10_000
_PLAIN = (bool, int, float, str, bytes)

# One beyond the end of its stream, or of another event at its version, as after an end of the log
# was lost, is of a future that never came. Events that were removed as old are no reason.
_NEWEST = (
    "select version, state from sm_snapshot where stream = ? and digest = ? "
    "and exists(select 1 from sm_event where sm_event.stream = sm_snapshot.stream "
    "and sm_event.version >= sm_snapshot.version) "
    "and not exists(select 1 from sm_event where sm_event.stream = sm_snapshot.stream "
    "and sm_event.version = sm_snapshot.version and sm_event.id <> sm_snapshot.event)"
)
_SAVE = (
    "insert into sm_snapshot(stream, digest, version, event, state, taken_us) "
    "values (?, ?, ?, ?, ?, ?) on conflict(stream, digest) do update set "
    "version = excluded.version, event = excluded.event, state = excluded.state, "
    "taken_us = excluded.taken_us"
)
# The release before this one may come back; those before that one do not.
_FORGET = (
    "delete from sm_snapshot where stream = ? and digest <> ? and digest not in ("
    "select digest from sm_snapshot where stream = ? and digest <> ? "
    "order by taken_us desc, digest limit 1)"
)

_log = logging.getLogger("synchromesh.events")


SEALED_STATES = (
    "select stream, version, state, taken_us from sm_snapshot where instr(state, ?) limit ?"
)
"""Finds the snapshots in which a text occurs, as `SEALED_EVENTS` does events."""


def state_place(name: str) -> str:
    """Return what personal values in the states of a decider are sealed for."""
    return f"state/{name}"


class StateCodec(Generic[S]):
    """Writes and reads the states of one decider.

    Attributes:
        digest: tells its snapshots from those of another release.
        is_usable: False once a state did not come back as it was: no more are taken.
    """

    def __init__(self, name: str, kind: Any, digest: str) -> None:
        self._name = name
        self._personal = personal_fields(kind)
        self._decode: Callable[[bytes], S] = decoder_of(kind)
        if self._personal is not None:
            self._personal.check_subject(f"the state of decider {name!r}")
        self.digest = digest
        self.is_usable = True

    def encode(self, state: S) -> bytes | None:
        """Encode a state; None where it would not come back equal."""
        try:
            written = encode(state)
            if self._decode(written) == state:
                return written
            reason = "it does not come back from JSON equal to what it was"
        except (BadRequest, *NO_FIT) as error:
            reason = str(error)
        self.is_usable = False
        _log.warning(_UNUSABLE, self._name, reason)
        return None

    def seal(self, written: bytes, vault: Vault) -> bytes:
        """Return an encoded state as it is stored, its personal fields sealed."""
        if self._personal is None:
            return written
        return self._personal.seal(written, state_place(self._name), vault)

    def decode(self, written: bytes, vault: Vault) -> S | None:
        """Decode a stored state; None where it does not fit."""
        if self._personal is not None:
            written = open_sealed(written, state_place(self._name), vault)
        try:
            return self._decode(written)
        except NO_FIT:
            return None

    def __repr__(self) -> str:
        return f"<StateCodec of {self._name} {self.digest[:8]}>"


_UNUSABLE = (
    "the state of decider %r cannot be kept in a snapshot: %s; every decision folds its whole "
    "stream. Make the state of structs, dataclasses and plain values, name its type by state=, or "
    "say snapshot_every=0"
)


@lru_cache(maxsize=1024)
def codec_of(decider: Decider[S, Any, Any]) -> StateCodec[S] | None:
    """Return what writes and reads a decider's states; None where it takes no snapshots."""
    if not decider.snapshot_every:
        return None
    kind = decider.state or _state_type(decider)
    try:
        if kind is None:
            raise TypeError("its type is not known; evolve says none")
        schema = msgspec.json.schema(kind)
        made: StateCodec[S] = StateCodec(decider.name, kind, _digest(decider, schema))
    except (TypeError, NameError, ValueError) as error:
        _log.warning(_UNUSABLE, decider.name, error)
        return None
    return made


def _state_type(decider: Decider[Any, Any, Any]) -> Any:
    """Return the type that `evolve` says it returns, or that of `initial` where that tells all."""
    try:
        said = typing.get_type_hints(decider.evolve).get("return")
    except (TypeError, NameError):
        said = None
    if said is not None and said is not Any and not isinstance(said, TypeVar):
        return said
    kind = type(decider.initial)
    if issubclass(kind, (msgspec.Struct, *_PLAIN)) or is_dataclass(kind):
        return kind
    return None


def _digest(decider: Decider[Any, Any, Any], schema: dict[str, Any]) -> str:
    events = [
        [
            cls.__name__,
            (of := EventVersions.of(cls)).version,
            [[version, _code(upcast)] for version, upcast in sorted(of.upcasters.items())],
        ]
        for cls in sorted(decider.events, key=lambda cls: cls.__name__)
    ]
    return digest(encode([schema, decider.version, events, _code(decider.evolve)]))


def _code(function: Callable[..., Any]) -> object:
    return _shape(getattr(function, "__code__", None))


def _shape(const: object) -> object:
    """Return what a function does, or a constant of it, without where it stands: lines may move."""
    if isinstance(const, CodeType):
        parts = [const.co_names, const.co_varnames, const.co_freevars]
        return [const.co_code.hex(), parts, [_shape(each) for each in const.co_consts]]
    if isinstance(const, tuple):
        return [_shape(each) for each in const]
    # The order of a set is another one in each process.
    return sorted(map(repr, const)) if isinstance(const, frozenset) else repr(const)


async def newest(source: Unit | Store, stream: str, codec: StateCodec[S]) -> tuple[int, S] | None:
    """Return the version and state of a stream's snapshot; None where there is none to use."""
    rows = await executor(source)(_NEWEST, stream, codec.digest)
    if not rows:
        return None
    state = codec.decode(_bytes(rows[0][1]), source.vault)
    return None if state is None else (int(rows[0][0] or 0), state)


async def save(unit: Unit, last: StoredEvent, codec: StateCodec[Any], state: bytes) -> None:
    """Save the state after an event within a unit; of other releases only the latest is kept."""
    stream, kept = last.stream, codec.seal(state, unit.vault)
    await unit.execute(_SAVE, stream, codec.digest, last.version, last.id, kept, unit.now_us)
    await unit.execute(_FORGET, stream, codec.digest, stream, codec.digest)


async def fold_ahead(
    store: Store, decider: Decider[S, Any, Any], types: EventTypes, stream: str
) -> None:
    """Fold a stream up to its end outside of any unit, and save the state on the way.

    What was folded stands, also where this is cancelled before its end.

    Raises:
        ContractError: a stored event cannot be read.
        LogGap: events were removed, so that what follows cannot be folded.
    """
    codec = codec_of(decider)
    if codec is None:
        return
    version, state = await newest(store, stream, codec) or (0, decider.initial)
    saved, is_end = version, False
    while not is_end and (page := await load(store, stream, version, limit=_PAGE)):
        is_end = len(page) < _PAGE or not await load(store, stream, page[-1].version, limit=1)
        for stored in page:
            state = decider.evolve(state, types.decode(stored))
        version = page[-1].version
        if is_end or version - saved >= _SAVE_EVERY:
            written = codec.encode(state)
            if written is None:
                return
            await store.write(
                partial(save, last=page[-1], codec=codec, state=written),
                name=f"snapshot of {decider.name}",
            )
            saved = version
        await asyncio.sleep(0)


def _bytes(value: SqlValue) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
