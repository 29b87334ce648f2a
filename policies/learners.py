"""From the kind in an artifact to the class that decides with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from policies.arms import Arm
from policies.artifact import PolicyArtifact
from policies.bandits import BANDITS, BanditPolicy
from policies.barp import BarpLearner, BarpPolicy
from policies.barp_dr import BarpDrLearner
from policies.errors import ArtifactError
from policies.fixed import FIXED, FixedPolicy
from policies.learning import Learner, LearnerSpec
from policies.policy import Policy
from policies.posterior import PosteriorPolicy
from policies.posterior_learner import PosteriorLearner
from policies.preference import Preference

__all__ = [
    "BarpDrLearner",
    "BarpLearner",
    "Learner",
    "LearnerSpec",
    "PosteriorLearner",
    "load_policy",
]

POLICIES: Final[Mapping[str, Callable[[PolicyArtifact], Policy]]] = {
    "barp": BarpPolicy,
    "barp-dr": BarpPolicy,
    "posterior": PosteriorPolicy,
    FIXED: FixedPolicy,
    **dict.fromkeys(BANDITS, BanditPolicy),
}


LEARNERS: Final[Mapping[str, Callable[[], Learner]]] = {
    "barp": BarpLearner,
    "barp-dr": BarpDrLearner,
    "posterior": PosteriorLearner,
}


def load_policy(artifact: PolicyArtifact) -> Policy:
    """Make the policy that an artifact holds, once it has decided something.

    An artifact that cannot decide is refused here, and not at the first request.

    Raises:
        ArtifactError: A kind this release does not know, or weights that do not fit together.
    """
    policy = POLICIES.get(artifact.kind)
    if policy is None:
        raise ArtifactError(
            f"kind={artifact.kind!r} is not known",
            field="kind",
            value=artifact.kind,
            allowed=", ".join(POLICIES),
        )
    try:
        loaded = policy(artifact)
        _try_out(loaded, artifact)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"weights of kind {artifact.kind!r} do not fit: {error}", field="weights"
        ) from error
    return loaded


def _try_out(policy: Policy, artifact: PolicyArtifact) -> None:
    """Decide between all its arms once; raises what a request would see."""
    arms = [Arm(name=name) for name in artifact.arms]
    if not arms:
        return
    context = np.zeros((1, artifact.context_dim), dtype=np.float32)
    with np.errstate(all="ignore"):
        pmf = policy.assess(context, [Preference(quality=0.5, cost=0.5)], arms).pmf
    if not np.isclose(pmf.sum(), 1.0) or not (pmf >= 0.0).all():
        raise ValueError("they make no distribution over the arms")
