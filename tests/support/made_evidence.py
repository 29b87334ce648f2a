"""Evidence for tests of judging: a champion, a challenger, and what is true of them."""

from __future__ import annotations

import numpy as np

from pipelines.evidence import Evidence
from policies.evaluation import LoggedRows
from policies.preference import preference_grid

GRID = preference_grid(5)


def evidence(
    *, gain: float, n: int, share: float = 0.2, seed: int = 0, of_quality: float = 0.0
) -> Evidence:
    """A canary moves half of the requests from one arm to another, better by twice the gain.

    Args:
        gain: True uplift at every preference.
        n: Decisions.
        share: Of the canary.
        seed: Of all draws.
        of_quality: What the canary costs on top where quality is all that counts.
    """
    rng = np.random.default_rng(seed)
    champion = np.tile([0.98, 0.02], (n, 1))
    challenger = np.tile([0.48, 0.52], (n, 1))
    mixture = (1 - share) * champion + share * challenger
    arm = (rng.uniform(size=n) >= mixture[:, 0]).astype(np.int64)
    level = np.where(arm == 1, 0.5 + 2 * gain, 0.5)
    quality = level - 2 * of_quality * arm + rng.normal(scale=0.2, size=n)
    # Cost is such that the reward at any preference moves by the same.
    cost = -level + rng.normal(scale=0.2, size=n) + 1.0
    return Evidence(
        log=LoggedRows(
            contexts=rng.normal(size=(n, 2)),
            arm=arm,
            propensity=mixture[np.arange(n), arm],
            outcomes=np.stack([quality, -cost], axis=1),
            folds=np.arange(n) % 5,
        ),
        units=np.arange(n),
        w_quality=rng.uniform(size=n),
        champion=champion,
        challenger=challenger,
        grid=GRID,
        champion_on_grid=np.tile(champion, (len(GRID), 1, 1)),
        challenger_on_grid=np.tile(challenger, (len(GRID), 1, 1)),
    )
