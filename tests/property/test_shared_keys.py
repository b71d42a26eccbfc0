"""API keys that gateways share: whatever is seen in whatever order, all come to the same keys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synchromesh.errors import ConfigError
from synchromesh.gateway.keys import ApiKey
from synchromesh.gateway.shared_keys import SharedKeys, read_shared

IDS = ("aaaa", "bbbb", "cccc")
KEYS = st.builds(
    ApiKey,
    id=st.sampled_from(IDS),
    principal=st.sampled_from(("shop", "till")),
    hash=st.just("sha256:" + 64 * "0"),
)
STATES = st.builds(
    SharedKeys,
    keys=st.lists(KEYS, max_size=3, unique_by=lambda key: key.id).map(tuple),
    removed=st.lists(st.sampled_from(IDS), max_size=3).map(tuple),
)


@given(STATES, STATES, STATES)
def test_states_come_together_in_any_order(a: SharedKeys, b: SharedKeys, c: SharedKeys) -> None:
    """A join: an old state that is put back, once or often, takes nothing away."""
    assert a.merged(b) == b.merged(a)
    assert a.merged(b).merged(c) == a.merged(b.merged(c))
    assert a.merged(b).merged(b) == a.merged(b).merged(a) == a.merged(b)


@given(STATES, STATES, st.sampled_from(IDS))
def test_what_was_removed_never_comes_back(a: SharedKeys, b: SharedKeys, gone: str) -> None:
    """Neither by a state from before, nor by who brings the key along again."""
    after = a.without(gone).merged(b).merged(a)
    assert gone not in after.by_id()
    brought = after.with_keys([ApiKey(gone, "shop", "sha256:" + 64 * "0")])
    assert gone not in brought.by_id()


def test_another_key_under_a_known_id_is_refused() -> None:
    """Which of the two is meant nobody could say; and a document that is none is named."""
    key = ApiKey("aaaa", "shop", "sha256:" + 64 * "0")
    with pytest.raises(ConfigError, match="another API key 'aaaa'"):
        SharedKeys((key,)).with_keys([ApiKey("aaaa", "till", key.hash)])
    for data in (b"{", b'{"keys": [{"id": "aaaa", "principal": "", "hash": "x"}]}'):
        with pytest.raises(ConfigError, match="API keys in there"):
            read_shared(data, "there")
