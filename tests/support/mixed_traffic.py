"""Requests decided by champion and canary as the registry names them, in a small known world."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from interactions import PRICES, Interactions, interaction_row

from pipelines.promotion import Promotion
from pipelines.registry import Registry
from policies.interaction import INTERACTION_SCHEMA
from policies.learners import load_policy
from policies.policy import Policy, mix_canary
from policies.preference import Preference

SHARE = 0.2
PREFERENCE = Preference(quality=0.7, cost=0.3)


class MixedTraffic(Interactions):
    """Interactions whose arms the versions in charge draw; `good` is better than `poor`."""

    def __init__(self, registry: Registry, promotion: Promotion) -> None:
        super().__init__()
        self._registry, self._promotion = registry, promotion
        self._policies: dict[int, Policy] = {}
        self.quality = {"good": 0.9, "poor": 0.3}

    def serve(self, number: int) -> None:
        """Route requests, and let their outcomes come back."""
        status = self._promotion.status()
        assert status.champion is not None
        start = len(self.rows)
        rows = [self._served(start + i, status.champion, status.canary) for i in range(number)]
        new = pa.Table.from_pylist(rows, schema=INTERACTION_SCHEMA)
        self.rows = pa.concat_tables([self.rows, new])

    def _policy(self, version: int) -> Policy:
        if version not in self._policies:
            self._policies[version] = load_policy(self._registry.artifact(version))
        return self._policies[version]

    def _served(self, index: int, champion: int, canary: int | None) -> dict[str, object]:
        context = self._rng.normal(size=4).astype(np.float32)
        pmf = drawn = self._policy(champion).pmf(context, PREFERENCE, PRICES.arms)
        version = champion
        if canary is not None:
            on_trial = self._policy(canary).pmf(context, PREFERENCE, PRICES.arms)
            pmf = mix_canary(pmf, on_trial, share=SHARE)
            if self._rng.uniform() < SHARE:
                drawn, version = on_trial, canary
        arm = int(self._rng.uniform() >= drawn[0])
        name = PRICES.names[arm]
        on_canary = {} if canary is None else {"champion_version": champion, "canary_share": SHARE}
        return interaction_row(
            index,
            w_quality=PREFERENCE.quality,
            w_cost=PREFERENCE.cost,
            context=context,
            pmf=pmf.tolist(),
            arm=name,
            propensity=float(pmf[arm]),
            policy_version=version,
            canary_version=canary,
            quality=float(np.clip(self.quality[name] + self._rng.normal(scale=0.2), 0, 1)),
            **on_canary,
        )
