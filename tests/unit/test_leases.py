"""Leases: literal times, no clock, no sleep."""

from __future__ import annotations

import pytest

from synchromesh.discovery import Change, ChangeKind, Endpoint, LeaseOptions, LeaseTable, Resolved
from synchromesh.errors import ConfigError, DiscoveryError, StaleIncarnation, UnknownInstance


def at(instance: str, port: int = 1) -> Endpoint:
    return Endpoint(instance, "billing", f"http://127.0.0.1:{port}")


@pytest.fixture
def table() -> LeaseTable:
    return LeaseTable(LeaseOptions(ttl_s=3.0, guard_s=30.0))


def names(table: LeaseTable) -> list[str]:
    return [endpoint.instance for endpoint in table.listed().endpoints]


def kinds(changes: list[Change]) -> list[str]:
    return [change.kind.value for change in changes]


def grant(table: LeaseTable, instances: str, *, now: float) -> None:
    for instance in instances:
        table.grant(at(instance), now=now)


def test_an_instance_that_stops_renewing_leaves_when_its_lease_ends(table: LeaseTable) -> None:
    """R1: the lease is the only thing that keeps an instance listed."""
    grant(table, "a", now=0.0)
    assert table.sweep(now=2.9) == []
    assert kinds(table.sweep(now=3.0)) == ["expired"]
    assert names(table) == []


def test_a_renewal_runs_the_full_ttl(table: LeaseTable) -> None:
    """Renewing counts from now, not from when the lease would have ended."""
    grant(table, "a", now=0.0)
    assert table.renew("a", 1, now=2.0) is None
    assert table.due_s() == 5.0
    assert table.sweep(now=4.9) == []
    assert kinds(table.sweep(now=5.0)) == ["expired"]


def test_a_suspect_is_listed_only_where_nobody_else_is_ready(table: LeaseTable) -> None:
    """R6: suspicion may be wrong, so it takes nobody's last instance; its lease runs on."""
    grant(table, "ab", now=0.0)
    suspected = table.suspect("a", 1, is_suspect=True)
    assert suspected is not None
    assert kinds([suspected]) == ["suspected"]
    assert table.suspect("a", 1, is_suspect=True) is None
    assert names(table) == ["b"]
    table.renew("a", 1, now=2.0)
    assert names(table) == ["b"]
    table.drain("b", 2)
    assert names(table) == ["a"]
    grant(table, "b", now=2.0)
    cleared = table.suspect("a", 1, is_suspect=False)
    assert cleared is not None
    assert kinds([cleared]) == ["cleared"]
    assert names(table) == ["a", "b"]
    with pytest.raises(StaleIncarnation):
        table.suspect("b", 2, is_suspect=True)


def test_who_registers_anew_is_above_suspicion(table: LeaseTable) -> None:
    """It has been heard."""
    grant(table, "ab", now=0.0)
    table.suspect("a", 1, is_suspect=True)
    grant(table, "a", now=1.0)
    assert names(table) == ["a", "b"]


def test_a_replaced_process_cannot_renew_drain_or_end(table: LeaseTable) -> None:
    """R2: a process paused while its successor registered is told to stop, and does no harm."""
    table.grant(at("a", 1), now=0.0)
    table.grant(at("a", 2), now=1.0)
    with pytest.raises(StaleIncarnation, match="2 has replaced it"):
        table.renew("a", 1, now=1.5)
    with pytest.raises(StaleIncarnation):
        table.drain("a", 1)
    with pytest.raises(StaleIncarnation):
        table.end("a", 1)
    assert table.listed().endpoints == (at("a", 2),)


def test_a_draining_instance_gets_no_new_calls_and_still_renews(table: LeaseTable) -> None:
    """Draining hides an instance from callers without ending its lease."""
    grant(table, "a", now=0.0)
    change = table.drain("a", 1)
    assert change is not None
    assert change.kind is ChangeKind.DRAINED
    assert table.drain("a", 1) is None
    table.renew("a", 1, now=2.0)
    assert names(table) == []
    assert table.sweep(now=4.9) == []
    assert len(table.leases) == 1


def test_an_expired_holder_has_to_register_again(table: LeaseTable) -> None:
    """A lease is not revived by a late renewal."""
    grant(table, "a", now=0.0)
    table.sweep(now=3.0)
    with pytest.raises(UnknownInstance, match="register again"):
        table.renew("a", 1, now=3.1)


def test_an_instance_that_ends_is_gone_at_once(table: LeaseTable) -> None:
    """A clean stop needs no ttl."""
    grant(table, "ab", now=0.0)
    assert table.end("a", 1).kind is ChangeKind.ENDED
    assert names(table) == ["b"]
    with pytest.raises(UnknownInstance):
        table.end("a", 1)


def test_the_list_is_ordered_by_instance(table: LeaseTable) -> None:
    """Renewals do not shuffle what callers see."""
    grant(table, "cab", now=0.0)
    table.renew("a", 2, now=1.0)
    assert names(table) == ["a", "b", "c"]


def test_most_of_a_service_vanishing_at_once_is_held_back_and_then_believed(
    table: LeaseTable,
) -> None:
    """R5: the guard keeps the last known good list, says so, and ends by itself."""
    grant(table, "abcd", now=0.0)
    assert kinds(table.sweep(now=3.0)) == ["held"]
    assert table.listed().is_stale
    assert names(table) == ["a", "b", "c", "d"]
    assert table.due_s() == 33.0
    assert table.sweep(now=32.9) == []
    assert kinds(table.sweep(now=33.0)) == ["expired"] * 4 + ["trusted"]
    assert not table.listed().is_stale


def test_when_the_registry_is_back_the_silent_ones_are_gone_one_ttl_later(
    table: LeaseTable,
) -> None:
    """R5: one survivor that keeps renewing cannot keep its dead siblings listed."""
    grant(table, "abc", now=0.0)
    table.sweep(now=3.0)
    table.renew("a", 1, now=4.0)
    table.renew("a", 1, now=5.0)
    assert table.due_s() == 7.0
    assert table.sweep(now=6.9) == []
    assert kinds(table.sweep(now=7.0)) == ["expired", "expired", "trusted"]
    assert names(table) == ["a"]


def test_a_new_instance_shows_the_registry_to_be_back_too(table: LeaseTable) -> None:
    """R5: being heard is what counts, however."""
    grant(table, "abc", now=0.0)
    table.sweep(now=3.0)
    grant(table, "d", now=4.0)
    assert table.due_s() == 7.0


def test_each_survivor_has_the_whole_ttl_to_be_heard(table: LeaseTable) -> None:
    """R5: the slowest to renew after an outage is not expired because the others were quicker."""
    grant(table, "abcd", now=0.0)
    table.sweep(now=3.0)
    for incarnation, name in enumerate("abc", 1):
        table.renew(name, incarnation, now=4.0)
    assert table.sweep(now=4.1) == []
    change = table.renew("d", 4, now=6.9)
    assert change is not None
    assert change.kind is ChangeKind.TRUSTED


def test_the_guard_ends_with_the_last_renewal(table: LeaseTable) -> None:
    """R5: a registry that was away and found its fleet alive is not stale for ever."""
    grant(table, "abc", now=0.0)
    table.sweep(now=3.0)
    assert table.renew("a", 1, now=4.0) is None
    assert table.renew("b", 2, now=4.0) is None
    change = table.renew("c", 3, now=4.0)
    assert change is not None
    assert not change.resolved.is_stale
    assert table.due_s() == 7.0


def test_the_guard_ends_where_the_silent_ones_end_themselves(table: LeaseTable) -> None:
    """R5: a list of the living only is not stale."""
    grant(table, "abc", now=0.0)
    table.sweep(now=3.0)
    table.renew("a", 1, now=4.0)
    table.end("b", 2)
    table.end("c", 3)
    assert kinds(table.sweep(now=4.1)) == ["trusted"]


def test_a_registry_that_stood_still_believes_nobody_to_be_dead(table: LeaseTable) -> None:
    """R5: also of one instance: it heard nobody meanwhile, and gives each one ttl to be heard."""
    grant(table, "a", now=0.0)
    assert kinds(table.sweep(now=6.0)) == ["held"]
    assert table.listed() == Resolved((at("a"),), is_stale=True)
    change = table.renew("a", 1, now=6.1)
    assert change is not None
    assert change.resolved == Resolved((at("a"),))
    grant(table, "b", now=20.0)
    assert kinds(table.sweep(now=30.0)) == ["held"]
    assert kinds(table.sweep(now=32.9)) == []
    assert kinds(table.sweep(now=33.0)) == ["expired", "expired", "trusted"]


def test_a_few_are_believed_to_be_dead(table: LeaseTable) -> None:
    """Two of two cannot be told from a dead registry, and half of four is no mass expiry."""
    grant(table, "ab", now=0.0)
    assert kinds(table.sweep(now=3.0)) == ["expired", "expired"]
    grant(table, "abcd", now=10.0)
    table.renew("a", 3, now=12.0)
    table.renew("b", 4, now=12.0)
    assert kinds(table.sweep(now=13.0)) == ["expired", "expired"]


def test_every_change_has_the_next_revision_and_the_list_it_led_to(table: LeaseTable) -> None:
    """A watcher that has a change needs nothing else."""
    first = table.grant(at("a"), now=0.0)
    second = table.grant(at("b"), now=0.0)
    third = table.end("a", 1)
    assert [change.revision for change in (first, second, third)] == [1, 2, 3]
    assert third.resolved.endpoints == (at("b"),)
    assert third.lease is not None
    assert third.lease.endpoint == at("a")


def test_a_full_table_takes_no_further_instance() -> None:
    """Instances are bounded; one that registers again is no further one."""
    table = LeaseTable(LeaseOptions(instances_max=2))
    grant(table, "ab", now=0.0)
    grant(table, "a", now=0.0)
    with pytest.raises(DiscoveryError, match="raise instances_max"):
        table.grant(at("c"), now=0.0)
    assert names(table) == ["a", "b"]


def test_its_repr_is_one_line(table: LeaseTable) -> None:
    """It shows how many are ready, of how many, and whether that is known."""
    grant(table, "abc", now=0.0)
    table.drain("a", 1)
    table.sweep(now=3.0)
    assert repr(table) == "<LeaseTable 2/3 ready rev 5 stale>"


@pytest.mark.parametrize(
    "wrong", [{"ttl_s": 0.0}, {"guard_s": -1.0}, {"instances_max": 0}, {"mass_expiry_max": 2.0}]
)
def test_wrong_options_are_refused(wrong: dict[str, float]) -> None:
    """A number that makes no sense is an error at once, with its range."""
    with pytest.raises(ConfigError, match="make"):
        LeaseOptions(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("url", ["", "127.0.0.1:1", "ftp:x", "http://", "HTTP://x"])
def test_an_endpoint_has_a_url_that_some_transport_may_know(url: str) -> None:
    """A wrong url is found where it is written, not at the first call."""
    with pytest.raises(ConfigError, match="instance 'a'"):
        Endpoint("a", "billing", url)


def test_an_endpoint_has_names() -> None:
    """Without a name nothing can be renewed."""
    with pytest.raises(ConfigError, match="give it both names"):
        Endpoint("", "billing", "sim://a")
