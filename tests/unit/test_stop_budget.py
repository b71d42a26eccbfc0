"""How the time of a graceful shutdown is divided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from synchromesh.errors import ConfigError
from synchromesh.system.supervise.stop_budget import StopBudget, budget_beside


def test_the_stages_of_a_stop_stay_below_ten_seconds() -> None:
    """Gateway, services, control API and external services end one after the other."""
    budget = StopBudget()
    stages = budget.gateway_s + budget.services_s + budget.control_s + budget.external_s
    assert budget.unready_s + stages < budget.total_s == 10.0
    patience = budget.replaced_s - budget.hurry_s
    assert budget.heard_s + budget.replaced_answer_s + budget.drain_s < patience
    assert budget.replaced_gateway_s < patience < 10.0


def test_the_documentation_says_how_a_stop_is_divided() -> None:
    """The stages of a stop are those that its page has."""
    budget = StopBudget()
    stages = (budget.gateway_s, budget.services_s, budget.control_s, budget.external_s)
    page = (Path(__file__).parents[2] / "docs/system.md").read_text()
    assert f"external services | {', '.join(f'{stage:g} s' for stage in stages)} |" in page
    budget = budget_beside(engines=True, applications=False)
    stages = (budget.gateway_s, budget.services_s, budget.control_s, budget.external_s)
    engine = f"{budget.engine_s + budget.engine_dies_s:g} s"
    assert f"servers | {', '.join(f'{stage:g} s' for stage in stages)}, {engine} |" in page


@pytest.mark.parametrize("engines", [False, True])
@pytest.mark.parametrize("applications", [False, True])
def test_whatever_else_ends_with_a_system_is_within_its_ten_seconds(
    engines: bool, applications: bool
) -> None:
    """Servers that were started with it end last; applications before the services that they need.

    A budget whose stages did not fit would be refused as it is made.
    """
    budget = budget_beside(engines=engines, applications=applications)
    assert budget.total_s == 10.0
    assert (budget.engine_s > 0, budget.engine_dies_s > 0) == (engines, engines)
    assert budget.has_applications is applications


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ({"gateway_s": 2.5}, "a stop may take 10.2 s; make its stages shorter than 10 s"),
        ({"engine_s": 1.0}, "a stop may take 10.95 s; make its stages shorter than 10 s"),
        ({"has_applications": True}, "a stop may take 14.45 s; make its stages shorter than 10 s"),
        ({"replaced_s": 10.0}, "a process that is replaced may take 10 s; make its bound"),
        ({"replaced_gateway_s": 8.5}, "replaced may take 9.2 s; make its stages shorter than 9 s"),
        ({"replaced_answer_s": 7.0}, "replaced may take 9.3 s; make its stages shorter than 9 s"),
    ],
)
def test_stages_that_do_not_fit_are_refused(stages: dict[str, Any], said: str) -> None:
    """Whoever makes one longer has to make another one shorter."""
    with pytest.raises(ConfigError) as caught:
        StopBudget(**stages)
    assert said in caught.value.message
