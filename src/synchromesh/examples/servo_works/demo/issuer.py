"""An identity provider for the demo: it signs tokens for some of the customers.

Its keys are made at the start, and live for one run. The public one is what `gateway.py` looks for.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from gateway import ISSUER_KEYS, PEOPLE

from synchromesh.errors import MissingExtra
from synchromesh.gateway.tokens import need_joserfc

LIFETIME_S = 300.0
# Whoever comes with less left gets a new one: it is not to expire on its way.
RENEWED_BEFORE_S = 120.0


class Issuer:
    """Signs tokens as the issuer that servo-works knows.

    Args:
        now_s: the wall clock, in seconds since 1970.

    Raises:
        MissingExtra: joserfc is not installed.
    """

    def __init__(self, now_s: Callable[[], float]) -> None:
        need_joserfc()
        from joserfc.jwk import ECKey

        self._now_s = now_s
        self._key = ECKey.generate_key("P-256", {"kid": "demo-1", "alg": "ES256"})
        self._kept: dict[str, tuple[str, float]] = {}

    @classmethod
    def opened(cls, folder: Path, now_s: Callable[[], float]) -> Self | None:
        """Publish a key in the folder of a system; None where no tokens can be made here."""
        try:
            issuer = cls(now_s)
        except MissingExtra:
            return None
        keys = {"keys": [issuer._key.as_dict(private=False)]}
        (folder / ISSUER_KEYS.name).write_text(json.dumps(keys))
        return issuer

    def token(self, subject: str, scopes: Iterable[str]) -> str:
        """Return a token that is good for a while."""
        token, until_s = self._kept.get(subject, ("", 0.0))
        if until_s - self._now_s() < RENEWED_BEFORE_S:
            until_s = self._now_s() + LIFETIME_S
            token = self.signed(self.claims(subject, scopes, exp=until_s))
            self._kept[subject] = token, until_s
        return token

    def claims(self, subject: str, scopes: Iterable[str], **others: object) -> dict[str, Any]:
        """Return the claims of a token; `others` are in the place of the usual ones."""
        usual = {
            "iss": PEOPLE.issuer,
            "aud": PEOPLE.audience,
            "sub": subject,
            "scope": " ".join(scopes),
            "exp": self._now_s() + LIFETIME_S,
        }
        return {**usual, **others}

    def signed(self, claims: Mapping[str, object]) -> str:
        """Sign whatever claims."""
        from joserfc import jwt

        header = {"alg": "ES256", "kid": "demo-1"}
        return str(jwt.encode(header, dict(claims), self._key, algorithms=["ES256"]))
