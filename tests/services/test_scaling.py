"""Replicas follow the load, at most doubling at a time."""

from __future__ import annotations

import pytest
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from services.scaling import IN_FLIGHT, at_most_double


def context(
    *, requests: float, running: int, target: int, unseen: tuple[float, ...] = ()
) -> AutoscalingContext:
    """What Serve's controller hands to a policy; `unseen` is what each replica says by itself."""
    replicas = [ReplicaID(str(n), DeploymentID(name="Router")) for n in range(len(unseen))]
    return AutoscalingContext(
        deployment_id=DeploymentID(name="Router", app_name="barp"),
        deployment_name="Router",
        app_name="barp",
        current_num_replicas=running,
        target_num_replicas=target,
        running_replicas=[],
        total_num_requests=requests,
        total_queued_requests=None,
        aggregated_metrics={IN_FLIGHT: dict(zip(replicas, unseen, strict=True))} if unseen else {},
        raw_metrics=None,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=8,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=None,
        config=AutoscalingConfig(min_replicas=1, max_replicas=8, target_ongoing_requests=4.0),
    )


@pytest.mark.parametrize(
    ("requests", "running", "target", "wanted"),
    [
        (64.0, 1, 1, 2),  # sixteen would be asked for at once
        (64.0, 1, 2, 2),  # the second is still starting: nothing more until it runs
        (64.0, 2, 2, 4),
        (9.0, 2, 2, 3),
        (3.0, 4, 4, 1),  # downward there is no step: whoever is not needed may go
        (0.0, 2, 2, 0),  # Serve itself keeps min_replicas
    ],
)
def test_the_load_decides_but_replicas_at_most_double(
    requests: float, running: int, target: int, wanted: int
) -> None:
    decided, state = at_most_double(context(requests=requests, running=running, target=target))
    assert decided == wanted
    assert state == {}


def test_requests_that_serve_does_not_see_count_like_those_it_sees() -> None:
    decided, _ = at_most_double(context(requests=1.0, running=4, target=4, unseen=(6.0, 4.5)))
    assert decided == 3  # of 11.5 requests, 4 to each
