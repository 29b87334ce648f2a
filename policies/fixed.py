"""One model for every request: the rule that a service lets decide while it learns beside it.

It knows nothing of prompts and preferences, and learns nothing. It keeps the promises of every
policy, exploration included, so that its log is one to learn from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from policies.arms import Arm
from policies.artifact import PolicyArtifact
from policies.errors import ArtifactError
from policies.learning import LearnerSpec
from policies.policy import Assessment, all_on, mix_exploration
from policies.preference import Preference

FIXED: Final = "fixed"
# At this length list costs are compared where the model itself is not offered, characters.
PROMPT_CHARACTERS: Final = 1_000

Array = NDArray[np.float64]


def fixed_artifact(arm: str, spec: LearnerSpec) -> PolicyArtifact:
    """Make the version that sends every request to one arm.

    Args:
        arm: The arm's name; it need not be on offer yet.
        spec: What versions of this service are made from.
    """
    return PolicyArtifact(
        kind=FIXED,
        arms=(arm,),
        encoder_id=spec.encoder_id,
        context_dim=spec.context_dim,
        cost_ceiling_usd=spec.cost_ceiling_usd,
        exploration_total=spec.exploration_total,
        price_version=spec.price_version,
        seed=spec.seed,
    )


class FixedPolicy:
    """Takes one arm; where that is not offered, the cheapest by list price of those that are."""

    def __init__(self, artifact: PolicyArtifact) -> None:
        """Read an artifact of this kind; raises ArtifactError unless it names exactly one arm."""
        if len(artifact.arms) != 1:
            raise ArtifactError(
                f"a fixed policy has one arm, not {len(artifact.arms)}",
                field="arms",
                value=len(artifact.arms),
                allowed="1",
            )
        self.kind, self.encoder_id = artifact.kind, artifact.encoder_id
        self.context_dim, self._exploration = artifact.context_dim, artifact.exploration_total
        (self.arm,) = artifact.arms

    def pmf(
        self, context: NDArray[np.float32], preference: Preference, offered: Sequence[Arm]
    ) -> Array:
        """Return the probability of each arm offered, float64, shape (num_offered,)."""
        return mix_exploration(
            self.greedy_pmf(context, preference, offered), exploration_total=self._exploration
        )

    def assess(
        self,
        contexts: NDArray[np.float32],
        preferences: Sequence[Preference],
        offered: Sequence[Arm],
    ) -> Assessment:
        """Return the pmf of several requests at once, shape (n, num_offered): all the same."""
        one = mix_exploration(self._choice(offered), exploration_total=self._exploration)
        return Assessment(pmf=np.tile(one, (len(contexts), 1)))

    def greedy_pmf(
        self, context: NDArray[np.float32], preference: Preference, offered: Sequence[Arm]
    ) -> Array:
        """Return all mass on the arm, shape (num_offered,)."""
        return self._choice(offered)

    def _choice(self, offered: Sequence[Arm]) -> Array:
        """Return all mass on the arm, or on the first of the cheapest where it is not offered."""
        names = [arm.name for arm in offered]
        if self.arm in names:
            return all_on(names.index(self.arm), len(names))
        costs = [arm.list_cost_usd(PROMPT_CHARACTERS) for arm in offered]
        return all_on(int(np.argmin(costs)), len(names))
