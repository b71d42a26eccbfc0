"""How a verb reaches a running system: its control socket, with the token of `run.json`."""

from __future__ import annotations

import http.client
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from synchromesh.errors import ConfigError
from synchromesh.system.rundir import RunDir, RunInfo

TIMEOUT_S = 60.0


class ControlClient:
    """Asks the control socket of the system that runs in a folder."""

    def __init__(self, folder: Path) -> None:
        self.info: RunInfo = RunDir(folder).read()

    def get(self, path: str) -> Any:
        """Return what a path answers."""
        return self._ask("GET", path, None)

    def post(self, path: str, body: object) -> Any:
        """Send a body and return the answer."""
        return self._ask("POST", path, msgspec.json.encode(body))

    def _ask(self, method: str, path: str, body: bytes | None) -> Any:
        place = urlsplit(self.info.control)
        connection = http.client.HTTPConnection(
            place.hostname or "127.0.0.1", place.port, timeout=TIMEOUT_S
        )
        headers = {"Authorization": f"Bearer {self.info.token}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            data = response.read()
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
            raise ConfigError(detail or f"the system answered {response.status}")
        return answer
