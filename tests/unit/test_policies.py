"""Policies of a caller: what is of the wrong type is named, with what would be right."""

from __future__ import annotations

from typing import Any

import pytest

from synchromesh.calls import Policies
from synchromesh.discovery import BalancerOptions
from synchromesh.errors import ConfigError
from synchromesh.resilience import Policy


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"attempts_per_tree": "4"}, "attempts_per_tree is '4'; make it a whole number"),
        ({"attempts_per_tree": True}, "attempts_per_tree is True"),
        ({"attempts_per_tree": 2.0}, "attempts_per_tree is 2.0"),
        ({"attempts_per_tree": -1}, "attempts_per_tree is -1"),
        ({"edges": {1: Policy()}}, "edges has the key 1; name them by texts"),
        ({"edges": {"billing": "safe"}}, r"edges\['billing'\] is 'safe'; make it Policy\(...\)"),
        ({"edges": [Policy()]}, "edges is .*; make it a dict from names to Policy"),
        ({"operations": {"a.b": Policy()}}, r"operations\['a.b'\] is .*OperationPolicy\(...\)"),
        ({"operations": {2: None}}, "operations has the key 2"),
        ({"balancers": {"a": "p2c"}}, r"balancers\['a'\] is 'p2c'; make it BalancerOptions"),
        ({"default": None}, "default is None; make it Policy"),
        ({"hold": 3.0}, "hold is 3.0; make it HoldOptions"),
    ],
)
def test_what_is_of_the_wrong_type_is_named(wrong: dict[str, Any], told: str) -> None:
    """At once, and not by a TypeError of the first call."""
    with pytest.raises(ConfigError, match=told):
        Policies(**wrong)


@pytest.mark.parametrize("wrong", ["x", 1, {}])
def test_outliers_of_a_balancer_are_options(wrong: Any) -> None:
    """Or None, for none."""
    with pytest.raises(ConfigError, match=r"outliers is .*; make it OutlierOptions.*, or None"):
        BalancerOptions(outliers=wrong)
    assert BalancerOptions(outliers=None).outliers is None
