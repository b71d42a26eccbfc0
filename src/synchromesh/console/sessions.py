"""Who may see the console: one-time tokens that become sessions; a pure machine.

A session is a cookie that proves itself by the system's key, so that it outlives a restart and
nothing is kept of it. Each form carries a token of its session, which no other page can know.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import deque

SESSION_S = 7 * 86_400.0
ENTRIES_MAX = 16


class Sessions:
    """Lets in whoever has a token that nobody has used, and knows them again.

    Args:
        key: signs sessions; the same after a restart.

    Example:
        >>> sessions = Sessions(b"k" * 32)
        >>> sessions.admit("once")
        >>> cookie = sessions.enter("once", "s1", now_s=0.0)
        >>> sessions.enter("once", "s2", now_s=0.0), sessions.knows(cookie or "", now_s=60.0)
        (None, True)
    """

    def __init__(self, key: bytes) -> None:
        self._key = hmac.digest(key, b"console", hashlib.sha256)
        self._entries: deque[str] = deque(maxlen=ENTRIES_MAX)

    def admit(self, token: str) -> None:
        """Take a new token; of more than `ENTRIES_MAX` that are unused the oldest is void."""
        self._entries.append(token)

    def enter(self, token: str, session: str, *, now_s: float) -> str | None:
        """Return the cookie of a new session, by a token that is void now; None where it was."""
        found = [each for each in self._entries if _equal(each, token)]
        if not found:
            return None
        self._entries.remove(found[0])
        named = f"{session}.{int(now_s)}"
        return f"{named}.{self._sign('session', named)}"

    def knows(self, cookie: str, *, now_s: float) -> bool:
        """Return whether a cookie is one that `enter` gave, within `SESSION_S`."""
        named, _, signature = cookie.rpartition(".")
        if not _equal(signature, self._sign("session", named)):
            return False
        return 0 <= now_s - int(named.rpartition(".")[2]) + 1 < SESSION_S

    def form_token(self, cookie: str) -> str:
        """Return what each form of a session carries."""
        return self._sign("form", cookie)

    def is_form_token(self, given: str, cookie: str) -> bool:
        """Return whether a form is one of this session."""
        return _equal(given, self.form_token(cookie))

    def _sign(self, what: str, text: str) -> str:
        signed = f"{what}\n{text}".encode(errors="replace")
        return hmac.new(self._key, signed, hashlib.sha256).hexdigest()

    def __repr__(self) -> str:
        return f"<Sessions, {len(self._entries)} tokens unused>"


def _equal(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(errors="replace"), other.encode(errors="replace"))
