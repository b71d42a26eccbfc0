"""Asks the supervisor whether a process may be let in, by what it offers and expects."""

from __future__ import annotations

import os
from urllib.parse import quote, urlsplit

import msgspec

from synchromesh.calls import Reply
from synchromesh.calls.description import ContractsOfPart
from synchromesh.errors import ConfigError
from synchromesh.http import HttpPool
from synchromesh.system.control.contract_book import ContractsReport
from synchromesh.system.supervise.messages import ProcessSpec

# The supervisor compares with all others; it is this machine's.
ANSWER_WITHIN_S = 10.0


async def report_contracts(contracts: ContractsOfPart, spec: ProcessSpec, pool: HttpPool) -> None:
    """Report what this process offers and expects, and return where it is let in.

    One that has no supervisor is compared with nobody.

    Raises:
        ConfigError: it would break what others expect; the message says what.
        CallError: the supervisor does not answer, or cannot take the report.
    """
    if not spec.control:
        return
    place = urlsplit(spec.control)
    response = await pool.request(
        place.hostname or "",
        place.port or 0,
        "POST",
        f"/services/{quote(spec.name, safe='')}/contracts",
        [("authorization", f"Bearer {spec.token}")],
        msgspec.json.encode(ContractsReport(os.getpid(), contracts)),
        timeout_s=ANSWER_WITHIN_S,
        is_idempotent=True,
    )
    reply = Reply(response.status, response.body)
    if not reply.is_answer:
        raise reply.to_error(())
    if refused := msgspec.json.decode(reply.body, type=list[str]):
        raise ConfigError(f"contracts would not fit: {'; '.join(refused)}")
