"""The intruders of the demo: come with credentials that are wrong, or over, or for something else.

None of them may get in, whatever else happens to the system meanwhile. Like everybody they ask
again where nobody had time for them: how often that is depends on the machine, and what they are
told in the end does not.
"""

import asyncio
import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from contracts.orders import PlaceOrder

from demo.door import NOES, SCOPES, WAIT_BASE_S, WAIT_CAP_S, Door, Unanswered
from demo.issuer import Issuer
from demo.running import RunningSystem
from synchromesh.runtime import RealRuntime

TRIES_MAX = 200
# Answers that say nothing of a credential: there was none, or somebody was too busy to give one.
NOTHING_SAID = frozenset({0, 429, 503, 504})
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Forgery:
    """What an intruder comes with, and what has to be said to it."""

    name: str
    authorization: str
    status: int


class Intruders:
    """Tries every wrong credential on several routes.

    Args:
        forgeries: what they come with; `forged` makes them.
    """

    def __init__(self, door: Door, rng: Random, forgeries: list[Forgery]) -> None:
        self._door, self._rng, self._forgeries = door, rng, forgeries

    async def try_all(self) -> None:
        """Try each of them once on each route, and note what became of it.

        Raises:
            Unanswered: nothing was said to one of them, however often it asked.
        """
        order = PlaceOrder("SW-9999", "SX40", 1, "intruder")
        for forgery in self._forgeries:
            for route, body in (
                ("POST /orders", order),
                ("GET /machines/SX75-20117", None),
                ("GET /stock/SX40", None),
            ):
                status = await self._try(forgery, route, body)
                self._door.account.note_intruder(forgery.name, status, forgery.status)

    async def _try(self, forgery: Forgery, route: str, body: object) -> int:
        wait_s = WAIT_BASE_S
        for _ in range(TRIES_MAX):
            answer = await self._door.try_in(route, forgery.authorization, body)
            if answer.code in NOES or answer.status not in NOTHING_SAID:
                return answer.status
            await asyncio.sleep(max(answer.retry_after_s, self._rng.uniform(wait_s / 2, wait_s)))
            wait_s = min(2 * wait_s, WAIT_CAP_S)
        raise Unanswered(f"{route} with {forgery.name} was never answered")


async def forged(system: RunningSystem, issuer: Issuer | None) -> list[Forgery]:
    """Return all that must not get in; keys of it are made in the file of the gateway."""
    keys = await system.make_keys(["looker"], "nothing:much")
    over = await system.make_keys(["former"], *SCOPES, expires_in_s=-DAY_S)
    right = keys["looker"]
    wrong = right[:-2] + ("AA" if right[-2:] != "AA" else "BB")
    found = [
        Forgery("no credential", "", 401),
        Forgery("a wrong key", f"Bearer {wrong}", 401),
        Forgery("an expired key", f"Bearer {over['former']}", 401),
        Forgery("a key without the scope", f"Bearer {right}", 403),
    ]
    if issuer is not None:
        found += [Forgery(name, f"Bearer {token}", how) for name, token, how in _tokens(issuer)]
    return found


def _tokens(issuer: Issuer) -> Iterator[tuple[str, str, int]]:
    now_s = RealRuntime().wall_us() / 1e6
    # The same issuer by its word, with a key that it has not published.
    other = Issuer(lambda: now_s)

    def made(**claims: object) -> str:
        return issuer.signed(issuer.claims("acme", SCOPES, **claims))

    yield "an expired token", made(exp=now_s - DAY_S), 401
    yield "a token of tomorrow", made(nbf=now_s + DAY_S, exp=now_s + 2 * DAY_S), 401
    yield "a token for somebody else", made(aud="another shop"), 401
    yield "a token of another issuer", made(iss="https://elsewhere.example"), 401
    yield "a token by another key", other.signed(issuer.claims("acme", SCOPES)), 401
    head, body, signature = made().split(".")
    yield "a token that was changed", f"{head}.{_more(body)}.{signature}", 401
    yield "an unsigned token", f"{_text({'alg': 'none'})}.{body}.{signature}", 401
    yield "a token without the scope", issuer.signed(issuer.claims("acme", ["none"])), 403


def _more(body: str) -> str:
    return _text({**json.loads(base64.urlsafe_b64decode(body + "==")), "sub": "root"})


def _text(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()
