"""Credentials: literal times, and every way of not having a valid one."""

import base64
import hashlib
import hmac
import json

import pytest

from synchromesh.errors import ConfigError, Unauthenticated
from synchromesh.identity import CACHE_MAX, REGISTRY, Credential, Principal, Signer
from synchromesh.priority import Priority

KEY = b"k" * 32
S = 1_000_000

ALICE = Principal("alice")


@pytest.fixture
def signer() -> Signer:
    return Signer(KEY, lifetime_s=300.0)


def test_a_credential_says_who_calls_for_whom(signer: Signer) -> None:
    """What was signed is what is read, by another process of the same key too."""
    token = signer.token("orders", ALICE, audience="billing", now_us=0)
    read = Signer(KEY).verify(token, audience="billing", now_us=S)
    assert read == Credential("orders", ALICE, "billing", 300 * S)
    assert token.isascii()
    assert "alice" not in repr(signer)


@pytest.mark.parametrize("priority", Priority)
def test_a_credential_says_what_its_calls_are_worth(signer: Signer, priority: Priority) -> None:
    """It is signed with the rest: another one is no credential of this system."""
    token = signer.token("gateway", ALICE, audience="billing", now_us=0, priority=priority)
    again = signer.token("gateway", ALICE, audience="billing", now_us=S, priority=priority)
    assert again == token
    assert Signer(KEY).verify(token, audience="billing", now_us=S).priority is priority
    body, _, signed = token.partition(".")
    said = json.loads(base64.urlsafe_b64decode(body))
    for other in set(Priority) - {priority}:
        changed = base64.urlsafe_b64encode(json.dumps(said | {"priority": other}).encode()).decode()
        with pytest.raises(Unauthenticated, match="not signed by this system"):
            signer.verify(f"{changed}.{signed}", audience="billing", now_us=S)


@pytest.mark.parametrize("said", [4, -1, "batch", None])
def test_a_priority_that_there_is_not_is_none(signer: Signer, said: object) -> None:
    """Not even this system's own signature makes it one."""
    fields = {
        "service": "orders", "principal": {"name": ""}, "audience": "billing", "expires_us": S,
    }  # fmt: skip
    signer.verify(forged(json.dumps(fields).encode()), audience="billing", now_us=0)
    with pytest.raises(Unauthenticated, match="cannot be read"):
        signer.verify(
            forged(json.dumps(fields | {"priority": said}).encode()), audience="billing", now_us=0
        )


def test_a_credential_is_made_once_in_half_its_life(signer: Signer) -> None:
    """Each token is good for half a life at least when it is handed out."""
    first = signer.token("orders", audience="billing", now_us=0)
    assert signer.token("orders", audience="billing", now_us=149 * S) == first
    assert signer.token("orders", audience="billing", now_us=150 * S) != first
    assert signer.token("orders", ALICE, audience="billing", now_us=0) != first
    assert signer.token("orders", audience="inventory", now_us=0) != first


@pytest.mark.parametrize("audience", ["inventory", REGISTRY, "", "Billing"])
def test_a_credential_is_for_one_audience(
    signer: Signer, audience: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Who received it can call nobody else with it, also where it was verified before (C4)."""
    token = signer.token("orders", ALICE, audience="billing", now_us=0)
    signer.verify(token, audience="billing", now_us=0)
    for each in (signer, Signer(KEY)):
        with pytest.raises(Unauthenticated, match="is for 'billing', and was shown to"):
            each.verify(token, audience=audience, now_us=0)
    said = "refused a credential of 'orders' for 'billing' that was shown to"
    assert [said in message for message in caplog.messages] == [True, True]
    assert token not in caplog.text


def test_a_credential_ends(signer: Signer) -> None:
    """5 s are given to clocks that differ, also to a token that was verified before."""
    token = signer.token("orders", audience="billing", now_us=0)
    signer.verify(token, audience="billing", now_us=305 * S)
    with pytest.raises(Unauthenticated, match="expired"):
        signer.verify(token, audience="billing", now_us=305 * S + 1)


def test_an_expired_credential_names_both_clocks(signer: Signer) -> None:
    """Whose clock is wrong nobody knows; how far they are apart is said, and what may be."""
    token = signer.token("orders", audience="billing", now_us=0)
    with pytest.raises(Unauthenticated) as refused:
        signer.verify(token, audience="billing", now_us=420 * S)
    assert str(refused.value) == (
        "the credential of this call, of 'orders', expired 120 s ago by the clock of 'billing', "
        "which says 1970-01-01 00:07:00 UTC. It is good for 300 s, and clocks may differ by 5 s: "
        "set the clocks of both hosts, or make a new one"
    )


OLD, NEW = b"o" * 32, b"n" * 32
# What each process has, one after the other: all are restarted between two of these.
PHASES = [(OLD,), (OLD, NEW), (NEW, OLD), (NEW,)]


@pytest.mark.parametrize("mine", range(4))
@pytest.mark.parametrize("theirs", range(4))
def test_a_key_is_changed_without_a_stop(mine: int, theirs: int) -> None:
    """Processes of two neighbouring phases believe each other, and of no others."""
    one, other = Signer(*PHASES[mine]), Signer(*PHASES[theirs])
    token, sealed = one.token("a", audience="b", now_us=0), one.seal(b"x", audience="b")
    if abs(mine - theirs) <= 1:
        assert other.verify(token, audience="b", now_us=0).service == "a"
        assert other.unseal(sealed, audience="b") == b"x"
        assert one.mark("x") in other.marks("x")
        assert one.client_key("c") in other.client_keys("c")
        assert one.database_passwords("r")[0] in other.database_passwords("r")
        is_same = PHASES[mine][0] == PHASES[theirs][0]
        assert other.is_sealed_now(sealed, audience="b") is is_same
    elif {mine, theirs} == {0, 3}:
        with pytest.raises(Unauthenticated, match="while that is changed both"):
            other.verify(token, audience="b", now_us=0)
        with pytest.raises(Unauthenticated):
            other.unseal(sealed, audience="b")


def mac(text: str) -> str:
    return hmac.new(KEY, text.encode(), hashlib.sha256).hexdigest()


def forged(body: bytes) -> str:
    """Sign what a Signer would not."""
    text = base64.urlsafe_b64encode(body).decode()
    return f"{text}.{mac(text)}"


def made_by(key: bytes) -> str:
    """Return a credential for billing under a key."""
    return Signer(key).token("orders", audience="billing", now_us=0)


@pytest.mark.parametrize(
    ("token", "text"),
    [
        ("", "carries no credential"),
        ("x", "not signed by this system"),
        (".", "not signed by this system"),
        ("ä.ö", "not signed by this system"),
        (made_by(b"o" * 32), "not signed by this system"),
        (made_by(KEY)[:-1], "not signed by this system"),
        ("A" + made_by(KEY), "not signed by this system"),
        (forged(b"{}"), "cannot be read"),
        (forged(b"[]"), "cannot be read"),
        (forged(b'{"service":1,"principal":{},"audience":"","expires_us":1}'), "cannot be read"),
        (forged(b'{"service":"orders","principal":{},"expires_us":1}'), "cannot be read"),
        ("a." + mac("a"), "cannot be read"),
        ("ä." + mac("ä"), "cannot be read"),
    ],
)
def test_whatever_is_not_signed_by_this_system_is_refused(
    signer: Signer, token: str, text: str
) -> None:
    """Missing, malformed, forged and cut tokens are Unauthenticated, and say no secret (C4)."""
    with pytest.raises(Unauthenticated, match=text) as caught:
        signer.verify(token, audience="billing", now_us=0)
    assert not token or token not in caught.value.message


def test_a_short_key_is_refused() -> None:
    """A key that could be guessed is a mistake of configuration."""
    with pytest.raises(ConfigError, match="has 31 bytes, at least 32"):
        Signer(b"k" * 31)


def test_memory_is_bounded(signer: Signer) -> None:
    """Neither many principals nor many tokens make it grow without end."""
    for number in range(CACHE_MAX + 1):
        token = signer.token("orders", Principal(f"p{number}"), audience="billing", now_us=0)
        signer.verify(token, audience="billing", now_us=0)
    assert repr(signer) == "<Signer 1 verified>"
    assert len(signer._made) == 1
