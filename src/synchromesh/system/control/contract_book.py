"""Which contracts the running processes of a system offer and expect: a pure machine.

Each process reports both before it is let in. A successor that would break what others expect, or
expects what they do not offer, is refused while its predecessor serves, unless somebody answers for
it. What the predecessor does not fit either is no reason to refuse. Where there is none, as after a
crash, the process is let in, for it is better than nothing; what does not fit is recorded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from synchromesh.calls.compatibility import Difference, differences
from synchromesh.calls.description import ContractsOfPart
from synchromesh.errors import BadRequest
from synchromesh.system.control.status_parts import ContractBreak

RECORDS_MAX = 50


class ReplaceRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /services/NAME/restart`: who breaks contracts on purpose, and why; empty for nobody.

    `asked_by` has it restarted, and `why`.
    """

    who: str = ""
    reason: str = ""
    asked_by: str = ""
    why: str = ""


def ran_anew(
    name: str,
    pids: Mapping[str, int | None],
    *,
    is_refused: bool = False,
    breaks: Sequence[str] = (),
    is_same_code: bool = False,
) -> dict[str, Any]:
    """Return what is answered of a part that was asked to run anew."""
    return {
        "service": name,
        "pids": pids,
        "is_same_code": is_same_code,
        "is_refused": is_refused,
        "breaks": breaks,
    }


class ContractsReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /services/NAME/contracts`: what a process offers and expects, before it is let in."""

    pid: int
    contracts: ContractsOfPart


class Admission(msgspec.Struct, frozen=True):
    """Whether a process is let in.

    Attributes:
        refused: what it is refused for; none where it is let in.
        record: of what does not fit all the same.
    """

    refused: tuple[Difference, ...] = ()
    record: ContractBreak | None = None


class Replacement:
    """A restart under way, and what its successor was told."""

    def __init__(self, request: ReplaceRequest) -> None:
        self.request = request
        self.admission = Admission()


class ContractBook:
    """Keeps the contracts of each running process, and decides who is let in.

    Attributes:
        breaks: the last of those that were let in although they do not fit.
    """

    def __init__(self) -> None:
        self.breaks: deque[ContractBreak] = deque(maxlen=RECORDS_MAX)
        self._running: dict[str, dict[int, ContractsOfPart]] = {}
        self._replacements: dict[str, Replacement] = {}

    @contextmanager
    def replacing(self, part: str, request: ReplaceRequest) -> Iterator[Replacement]:
        """Hold the request of a restart until its successor has reported.

        Raises:
            BadRequest: the part is being restarted, or not both of who and why are given.
        """
        if part in self._replacements:
            raise BadRequest(f"{part!r} is being restarted; wait until it is up")
        if bool(request.who.strip()) != bool(request.reason.strip()):
            raise BadRequest("breaking a contract needs both: who does it, and the reason")
        self._replacements[part] = replacement = Replacement(request)
        try:
            yield replacement
        finally:
            del self._replacements[part]

    def report(self, part: str, pid: int, contracts: ContractsOfPart, *, now_us: int) -> Admission:
        """Take the report of a process, and say whether it is let in."""
        own = self._running.setdefault(part, {})
        before = {each for running in own.values() for each in self._differences(part, running)}
        found = tuple(e for e in self._differences(part, contracts) if e not in before)
        replacement = self._replacements.get(part)
        request = ReplaceRequest() if replacement is None else replacement.request
        if found and own and not request.reason:
            admission = Admission(refused=found)
        else:
            own[pid] = contracts
            admission = Admission(record=self._record(part, pid, request, found, now_us))
        if replacement is not None:
            replacement.admission = admission
        return admission

    def _record(
        self,
        part: str,
        pid: int,
        request: ReplaceRequest,
        found: tuple[Difference, ...],
        now_us: int,
    ) -> ContractBreak | None:
        if not found:
            return None
        said = tuple(map(str, found))
        record = ContractBreak(now_us, part, pid, request.who, request.reason, said)
        self.breaks.append(record)
        return record

    def status(self) -> list[ContractBreak]:
        """Return the records, each with what of it stands among the processes that run."""
        if not self.breaks:
            return []
        found = {
            str(each)
            for part, running in self._running.items()
            for own in running.values()
            for each in self._differences(part, own)
        }
        return [
            msgspec.structs.replace(
                record, standing=tuple(each for each in record.differences if each in found)
            )
            for record in self.breaks
        ]

    def taken(self, known: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
        """Return the events that each service takes: by its processes, or else as it is known."""
        found: dict[str, frozenset[str]] = {}
        for part, running in self._running.items():
            service = part.partition("#")[0]
            for own in running.values():
                found[service] = found.get(service, frozenset()) | own.expects.events.keys()
        return {**known, **found}

    def ended(self, part: str, pid: int) -> None:
        """Forget a process that has ended."""
        self._running.get(part, {}).pop(pid, None)

    def _differences(self, part: str, own: ContractsOfPart) -> Iterable[Difference]:
        """Return what does not fit between a process and those of other parts, each once."""
        found: dict[Difference, None] = {}
        # Replicas offer and expect what their service does.
        ours = part.partition("#")[0]
        for other, running in self._running.items():
            name = other.partition("#")[0]
            for theirs in running.values() if name != ours else ():
                found |= dict.fromkeys(
                    (
                        *differences(theirs.expects, own.offers, of=ours, by=name),
                        *differences(own.expects, theirs.offers, of=name, by=ours),
                    )
                )
        return found

    def __repr__(self) -> str:
        return f"<ContractBook of {', '.join(self._running) or 'nobody'}>"
