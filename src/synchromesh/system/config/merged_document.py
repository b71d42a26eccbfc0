"""A document in NATS KV that the processes of a system put together out of what each has seen.

Two states of it are always one: in any order, as often as one likes. So each process keeps what it
has ever seen, whatever becomes of the server, and writes down again what was lost there; an old
state that is put back takes nothing away.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

import msgspec

from synchromesh.discovery.nats_document import NatsDocument
from synchromesh.discovery.nats_requests import Conflict
from synchromesh.errors import ConfigError, DiscoveryError

ASK_EVERY_S = 0.4
# Every so many times the whole is asked for, and not only whether it has changed.
WHOLE_EVERY = 20
CHANGE_WITHIN_S = 10.0
PAUSE_S = 0.1


class Mergeable(Protocol):
    """A state that is put together with any other one."""

    def merged(self, other: Self) -> Self:
        """Return what both know together."""
        ...


M = TypeVar("M", bound=Mergeable)
T = TypeVar("T")


class DocumentWords(NamedTuple):
    """How messages call what is in a document.

    Attributes:
        what: such as "the API keys".
        look: the command that shows them.
        too_many: what to do where no more fit.
        log: the name of the logger.
    """

    what: str
    look: str
    too_many: str
    log: str


class MergedDocument(Generic[M]):
    """The document as one process knows it; `open`, then `run` or `change`, then `close`.

    Args:
        none: the state of which nothing is known.
        read: decodes a state; raises ConfigError where it is none.
        trim: returns a state without what may be forgotten by now.

    Attributes:
        known: what was last seen, with all that was ever seen before, but what is forgotten.
        why_old: why it may be old, in words; "" where it is not.
    """

    def __init__(
        self,
        document: NatsDocument,
        none: M,
        read: Callable[[bytes, str], M],
        trim: Callable[[M], M],
        words: DocumentWords,
    ) -> None:
        self._document = document
        self._none = none
        self._read = read
        self._trim = trim
        self._words = words
        self._log = logging.getLogger(words.log)
        self.known = none
        self.why_old = ""
        self._revision: int | None = None
        self._asked = 0

    async def first(self) -> bool:
        """Ask for it; return whether the server has ever had it.

        Raises:
            ConfigError: the server cannot be used, or what is there is another system's.
            DiscoveryError: it does not answer.
            MissingExtra: the extra `nats` is not installed.
        """

        async def asking() -> int:
            await self._document.open()
            return await self._look(is_renewed=True)

        return await self._patiently(asking) != 0

    async def close(self) -> None:
        """End the connection. May be repeated."""
        await self._document.close()

    async def change(self, change: Callable[[M], M]) -> M:
        """Change it on the server, and return it.

        Args:
            change: returns what is wanted of what is there; asked again where others change it
                meanwhile, or the server was slow.

        Raises:
            ConfigError: as it raises; or no more fits.
            DiscoveryError: the server does not answer; what was wanted may be done yet.
        """

        async def changing() -> M:
            revision = await self._look()
            wanted = self._trim(change(self.known))
            if wanted != self.known or not revision:
                await self._write(wanted, revision)
            return wanted

        try:
            return await self._patiently(changing)
        except DiscoveryError as error:
            raise DiscoveryError(
                f"{error.message}; it is not known whether {self._words.what} were changed: look "
                f"at {self._words.look} once the server answers"
            ) from error

    async def follow(self, changed: Callable[[M], None]) -> None:
        """Ask for it again and again, and tell what it is once it has changed; a supervised loop.

        That is within a second, while the server answers.
        """
        while True:
            before = self.known
            try:
                self._asked += 1
                if self._asked % WHOLE_EVERY == 0 or self._revision is None or self.why_old:
                    await self._look()
                else:
                    found = await self._document.read(self._revision)
                    if found is not None:
                        await self._look()
            except Conflict:
                pass  # another process writes it down again
            except (ConfigError, DiscoveryError) as error:
                if not self.why_old:
                    self._log.error("%s stay as they were: %s", self._words.what, error.message)
                self.why_old = error.message
            else:
                if self.why_old:
                    self._log.info("%s are asked for again", self._words.what)
                self.why_old = ""
            if self.known != before:
                changed(self.known)
            await asyncio.sleep(ASK_EVERY_S)

    async def _patiently(self, act: Callable[[], Awaitable[T]]) -> T:
        """Do something again while others change it, and for a while where nobody answers."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + CHANGE_WITHIN_S
        while True:
            try:
                return await act()
            except Conflict:
                pass
            except DiscoveryError:
                if loop.time() >= end_s:
                    raise
            await asyncio.sleep(PAUSE_S)

    async def _look(self, *, is_renewed: bool = False) -> int:
        """Read it, write down again what was lost; return the revision, 0 for none ever.

        Args:
            is_renewed: writes down again also what an older key has sealed. By starts alone: while
                the key is changed those with either would else do it in turn.

        Raises:
            Conflict: it has changed meanwhile.
            ConfigError, DiscoveryError: it cannot be read or written.
        """
        found = await self._document.read()
        assert found is not None, "no revision was named"
        there = self._none
        if found.data is not None:
            there = self._read(found.data, self._document.there)
        self.known = self._trim(self.known.merged(there))
        self._revision = found.revision
        # What is forgotten alone is no reason to write: of that each would have its own clock.
        if self.known != self._trim(there) or (is_renewed and found.is_old):
            return await self._write(self.known, found.revision)
        return found.revision

    async def _write(self, wanted: M, expected: int) -> int:
        data = msgspec.json.encode(wanted)
        if len(data) > (most := self._document.bytes_max):
            words = self._words
            raise ConfigError(
                f"{words.what} would have {len(data):,} bytes, and NATS takes {most:,} at most: "
                f"nothing was changed; {words.too_many}"
            )
        self._revision = await self._document.write(data, expected=expected)
        self.known = wanted
        return self._revision

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._document!r}>"
