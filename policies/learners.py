"""From the kind in an artifact to the class that decides with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

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
    """Make the policy that an artifact holds.

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
        return policy(artifact)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"weights of kind {artifact.kind!r} do not fit: {error}", field="weights"
        ) from error
