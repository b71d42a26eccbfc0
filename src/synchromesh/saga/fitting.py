"""Finds the code that fits a run: of several versions of a saga, the one that its records match."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from synchromesh.errors import PersonalUnreadable, StoreError, SynchromeshError
from synchromesh.saga import outcomes
from synchromesh.saga.definition import SagaDefinition
from synchromesh.saga.deps import SagaDeps
from synchromesh.saga.execution import Execution
from synchromesh.saga.records import SagaRecord
from synchromesh.saga.tables import SagaRow
from synchromesh.saga.versions import SagaVersions

_log = logging.getLogger("synchromesh.saga")


def fit(
    deps: SagaDeps, versions: SagaVersions, row: SagaRow, records: Sequence[SagaRecord]
) -> Execution | str:
    """Return a run at the end of these records, with the first code that they match; or why none.

    Only the function is run, and nothing that it asks for.
    """
    tried = versions.fitting(row.name, row.version)
    if not tried:
        newest = versions.newest(row.name)
        here = "no such saga" if newest is None else f"version {newest.version} at most"
        return f"code v{row.version}: this release has {here}"
    said = []
    for definition in tried:
        try:
            found = _try(deps, row, records, definition)
        except PersonalUnreadable as error:
            return f"keys: {error.message}"
        if isinstance(found, Execution):
            return found
        said.append(f"v{definition.version} does not fit: {found}")
    return f"code v{row.version}: {'; '.join(said)}"


def _try(
    deps: SagaDeps,
    row: SagaRow,
    records: Sequence[SagaRecord],
    definition: SagaDefinition[Any, Any],
) -> Execution | str:
    try:
        execution = Execution(deps, definition, row, records)
        execution.advance()
    except StoreError:
        raise
    except Exception as error:  # noqa: BLE001 - one broken run must not end the others
        if isinstance(error, SynchromeshError):
            return error.message
        _log.error("saga %r cannot be loaded", row.id, exc_info=error)
        return outcomes.why(error)
    if execution.misfit:
        execution.drop()
        return execution.misfit
    return execution
