"""What a process makes of what a registry tells it, and whose an entry is; literal times."""

from __future__ import annotations

import pytest

from synchromesh.codec import encode
from synchromesh.discovery import Endpoint, LeaseOptions, Resolved
from synchromesh.discovery.entries import (
    InstanceEntry,
    Kept,
    Standing,
    name_of,
    place_of,
    read,
    standing,
    token_of,
)
from synchromesh.discovery.view import SILENCE_S, RegistryView
from synchromesh.errors import BadRequest, DiscoveryError

TTL_S = 3.0


def kept(
    instance: str, revision: int = 1, *, is_draining: bool = False, is_suspect: bool = False
) -> Kept:
    endpoint = Endpoint(instance, "billing", f"http://{instance}:1")
    entry = InstanceEntry(endpoint, "p1", revision, is_draining=is_draining, is_suspect=is_suspect)
    return Kept(entry, revision)


def view_of(*instances: str, entries_max: int = 100) -> RegistryView:
    """Return a view whose watch has told of these at 0."""
    options = LeaseOptions(ttl_s=TTL_S, instances_max=4)
    view = RegistryView(options, entries_max=entries_max)
    view.told([kept(instance) for instance in instances], now=0.0)
    return view


def names(view: RegistryView) -> tuple[str, bool]:
    """Return who is listed, and whether that is stale."""
    resolved = view.listed("billing")
    return "".join(each.instance for each in resolved.endpoints), resolved.is_stale


def expire(view: RegistryView, instances: str, now: float) -> None:
    for instance in instances:
        view.gone("billing", instance, is_expired=True, now=now)


def test_nothing_is_known_before_the_first_watch() -> None:
    """That is blind, and another thing than that nobody is there."""
    view = RegistryView(LeaseOptions())
    assert (view.is_blind, view.was_told, view.due_s()) == (True, False, None)
    assert view.listed("billing") == Resolved((), is_stale=True)
    view.told([], now=0.0)
    assert (view.is_blind, view.was_told, names(view)) == (False, True, ("", False))
    assert repr(view) == "<RegistryView 0 instances, watching>"


def test_one_that_ended_is_gone_at_once() -> None:
    """R1: its holder, or who saw it die, has said so; twice is no matter."""
    view = view_of("a", "b", "c")
    for _ in range(2):
        view.gone("billing", "a", is_expired=False, now=0.1)
    assert names(view) == ("bc", False)
    assert view.services() == ("billing",)


def test_one_that_expired_alone_is_gone_at_once() -> None:
    """R1: while the watch is older than a lease, the registry has heard whoever lives."""
    view = view_of("a", "b", "c")
    expire(view, "a", now=TTL_S)
    assert names(view) == ("bc", False)


def test_an_expiry_just_after_a_fresh_watch_is_doubted() -> None:
    """R4: they may not have come through yet; they have one ttl."""
    view = view_of("a", "b", "c")
    expire(view, "a", now=TTL_S - 0.1)
    assert names(view) == ("abc", True)
    assert not view.sweep(now=2 * TTL_S - 0.2)
    assert view.sweep(now=2 * TTL_S - 0.1)
    assert names(view) == ("bc", False)


def test_a_mass_expiry_empties_no_list_and_the_guard_ends() -> None:
    """R5: what is past the share stays for a ttl; who is heard again is sure at once."""
    view = view_of("a", "b", "c", "d")
    expire(view, "abcd", now=10.0)
    assert names(view) == ("cd", True)
    view.put(kept("a", 7))
    view.put(kept("c", 8))
    assert names(view) == ("acd", True)
    assert view.sweep(now=13.0)
    assert names(view) == ("ac", False)
    # Those of long ago count for nothing: one of three is no mass.
    view.put(kept("d", 9))
    expire(view, "a", now=20.0)
    assert names(view) == ("cd", False)


def test_one_or_two_are_believed_to_be_dead() -> None:
    """A dead registry cannot be told from them: the clock wins."""
    view = view_of("a", "b")
    expire(view, "ab", now=10.0)
    assert names(view) == ("", False)


def test_the_last_known_good_is_given_on_while_the_watch_is_blind() -> None:
    """R4: nobody is taken off; then what a fresh watch does not tell of has one ttl to come."""
    view = view_of("a", "b", "c")
    view.lost(now=10.0)
    assert (names(view), view.due_s()) == (("abc", True), None)
    assert not view.sweep(now=1000.0)
    view.told([kept("b", 7), kept("d", 8)], now=1000.0)
    assert names(view) == ("abcd", True)
    view.put(kept("a", 9))
    view.sweep(now=1002.9)
    assert names(view) == ("abcd", True)
    view.sweep(now=1003.0)
    assert names(view) == ("abd", False)


def test_a_doubt_is_no_older_than_the_watch() -> None:
    """An outage within an outage begins the time anew."""
    view = view_of("a")
    for at_s in (10.0, 12.0):
        view.lost(now=at_s)
        view.told([], now=at_s + 1.0)
    assert not view.sweep(now=15.9)
    assert view.sweep(now=16.0)
    assert names(view) == ("", False)


def test_a_silence_is_blindness() -> None:
    """Also where this process stood still itself: what comes then comes too late."""
    view = view_of("a")
    assert view.due_s() == SILENCE_S
    assert view.heard(now=1.0)
    assert view.due_s() == 1.0 + SILENCE_S
    assert not view.is_silent(now=2.4)
    assert view.is_silent(now=2.5)
    assert not view.heard(now=2.5)
    view.lost(now=2.5)
    assert view.is_silent(now=2.5)


def test_the_draining_and_the_suspect_are_not_listed() -> None:
    """R6: but for suspects where nobody else is; who drains never is."""
    view = view_of()
    view.put(kept("a", is_draining=True))
    view.put(kept("b", is_suspect=True))
    assert names(view) == ("b", False)
    view.put(kept("c"))
    assert names(view) == ("c", False)
    assert [each.entry.endpoint.instance for each in view.of("billing")] == ["a", "b", "c"]


def test_it_is_bounded() -> None:
    """A service refuses one too many; what is too much of all is left out and counted."""
    view = view_of("a", "b", "c", "d", entries_max=4)
    view.check_room(kept("a").entry.endpoint)
    with pytest.raises(DiscoveryError, match="raise instances_max"):
        view.check_room(kept("e").entry.endpoint)
    view.put(kept("e"))
    view.put(kept("a", 7))
    assert (len(view), view.dropped) == (4, 1)


def test_whose_an_entry_is() -> None:
    """Ours under any state; lost where nothing or an unheard grant of ours is; else replaced."""
    mine = kept("a", 4).entry
    drained = kept("a", 4, is_draining=True)
    assert standing(mine, drained) is Standing.OURS
    assert standing(mine, None) is Standing.LOST
    assert standing(mine, kept("a", 5)) is Standing.LOST
    other = Kept(InstanceEntry(mine.endpoint, "p2", 9), 9)
    assert standing(mine, other) is Standing.REPLACED


@pytest.mark.parametrize("name", ["billing#1", "a.b", "*", ">", "ä ö", "a=b", "a/b", "x" * 200])
def test_a_name_is_one_token_and_comes_back(name: str) -> None:
    """Whatever it has in it, it makes no second token and no wildcard."""
    token = token_of(name)
    assert token.isascii()
    assert not set(token) & set(" .*>\t\r\n")
    assert name_of(token) == name


def test_an_entry_is_read_as_it_was_written() -> None:
    """A grant has the number of its own message; an empty message is no entry; junk is refused."""
    granted = InstanceEntry(Endpoint("a", "billing", "http://a:1", (("pid", "7"),)), "p1")
    found = read(encode(granted), 17)
    assert found is not None
    assert (found.entry.incarnation, found.revision) == (17, 17)
    assert read(encode(found.entry), 18) == Kept(found.entry, 18)
    assert read(b"", 19) is None
    for junk in (
        b"{}",
        b"[",
        b'{"holder":"p","endpoint":{"instance":"a","service":"b","url":"x"}}',
    ):
        with pytest.raises(BadRequest):
            read(junk, 1)
    assert place_of(granted.endpoint) == "billing.a"
