"""The client of a running system's control API, with the token of `run.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from synchromesh.errors import ConfigError, RemoteFailed
from synchromesh.system.config.rundir import RunDir, RunInfo

TIMEOUT_S = 30.0
BLOCKED_S = 5.0


class ControlClient:
    """A client of the control API of the system that runs in a folder."""

    def __init__(self, folder: Path) -> None:
        self._rundir = RunDir(folder)
        self.info: RunInfo = self._rundir.read()

    def get(self, path: str) -> Any:
        """Send a GET request and return the answer; a blocked system is not waited for long."""
        return self._ask("GET", path, None, BLOCKED_S if self._blocked_by() else TIMEOUT_S)

    def post(self, path: str, body: object, *, within_s: float = 0.0) -> Any:
        """Send a POST request and return the answer; `within_s` is the time the system may take."""
        return self._ask("POST", path, msgspec.json.encode(body), TIMEOUT_S + within_s)

    def _blocked_by(self) -> str:
        return self._rundir.blocked_by("", self.info.pid)

    def _ask(self, method: str, path: str, body: bytes | None, timeout_s: float) -> Any:
        """Return the decoded answer.

        Raises:
            ConfigError: nothing, or something else, listens there; or the system says that what it
                was asked for is wrong.
            RemoteFailed: the system failed.
        """
        import http.client  # loads ssl, which no command needs to explain itself

        place = urlsplit(self.info.control)
        connection = http.client.HTTPConnection(
            place.hostname or "127.0.0.1", place.port, timeout=timeout_s
        )
        headers = {"Authorization": f"Bearer {self.info.token}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            data = response.read()
        except TimeoutError as error:
            by = self._blocked_by()
            why = f"is blocked by {by}" if by else "hangs, or does too much at once"
            raise RemoteFailed(
                f"the system at {self.info.control} did not answer within {timeout_s:g} s; "
                f"process {self.info.pid} {why}"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise ConfigError(
                f"the system does not answer at {self.info.control} ({error}); process "
                f"{self.info.pid} may have died: start it again with: synchromesh dev"
            ) from error
        finally:
            connection.close()
        try:
            answer = msgspec.json.decode(data)
        except msgspec.DecodeError as error:
            raise ConfigError(
                f"what listens at {self.info.control} is not this system; start it again"
            ) from error
        if response.status >= 400:
            detail = answer.get("detail", "") if isinstance(answer, dict) else ""
            message = str(detail) or f"the system answered {response.status}"
            raise (RemoteFailed if response.status >= 500 else ConfigError)(message)
        return answer
