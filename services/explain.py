"""Explains a decision: fetches what was stored, loads who served, derives the pmf again."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from policies.artifact import PolicyArtifact
from policies.errors import ArtifactError, RouterError
from policies.explanation import Logged, explain
from policies.policy import Policy
from policies.preference import Preference
from services.actors import AggregatorPort, RegistryPort

# Policies kept loaded for the next explanation: some megabytes each.
KEEP_POLICIES: Final = 4


class Explainer:
    """Derives decisions again, whichever versions made them.

    Args:
        aggregator: Where contexts and price tables are kept.
        registry: Where versions are kept.
        load: Makes a policy of an artifact.
    """

    def __init__(
        self,
        aggregator: AggregatorPort,
        registry: RegistryPort,
        *,
        load: Callable[[PolicyArtifact], Policy],
    ) -> None:
        self._aggregator, self._registry, self._load = aggregator, registry, load
        self._policies: OrderedDict[int, tuple[Policy, float]] = OrderedDict()

    async def explanation(self, decision_id: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """Explain a decision as the ledger tells of it; where that cannot be, say why.

        Args:
            decision_id: Which one.
            record: As `AggregatorPort.decision` returns it.
        """
        try:
            return await self._explained(decision_id, record)
        except RouterError as error:
            return {"unavailable": str(error)}

    async def _explained(self, decision_id: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """Fetch, load, derive; raises RouterError for what is away or gone."""
        context = await self._aggregator.context(decision_id)
        if context is None:
            raise ArtifactError("its context is not kept any more", field="decision_id")
        version, drew = record.get("champion_version"), int(record["policy_version"])
        champion = drew if version is None else int(version)
        canary = record.get("canary_version")
        prices = await self._aggregator.price_history([record["price_version"]])
        if record["price_version"] not in prices:
            raise ArtifactError(
                f"price table {record['price_version']} is not kept any more",
                field="price_version",
            )
        policies = [await self._policy(v) for v in (champion, canary) if v is not None]
        who_drew, cost_ceiling_usd = policies[-1 if drew == canary else 0]
        explained = await asyncio.to_thread(
            explain,
            _logged(record, context),
            champion=policies[0][0],
            canary=policies[1][0] if canary is not None else None,
            prices=prices[record["price_version"]],
            drawn_by_canary=canary is not None and drew == int(canary),
            cost_ceiling_usd=cost_ceiling_usd,
        )
        return {
            "champion_version": champion,
            "canary_version": canary,
            "canary_share": record.get("canary_share", 0.0),
            "drawn_by_version": drew,
            "learner": who_drew.kind,
            **explained,
        }

    async def _policy(self, version: int) -> tuple[Policy, float]:
        """Return a version's policy and cost ceiling, USD.

        Raises:
            UnknownVersion: There is no such version.
            ArtifactError: Its files are gone or damaged.
        """
        if version not in self._policies:
            artifact = await self._registry.artifact(version)
            policy = await asyncio.to_thread(self._load, artifact)
            self._policies[version] = policy, artifact.cost_ceiling_usd
            while len(self._policies) > KEEP_POLICIES:
                self._policies.popitem(last=False)
        self._policies.move_to_end(version)
        return self._policies[version]


def _logged(record: Mapping[str, Any], context: NDArray[np.float32]) -> Logged:
    """Read what a record says of the draw."""
    return Logged(
        context=context,
        preference=Preference(quality=record["w_quality"], cost=record["w_cost"]),
        arms_offered=tuple(record["arms_offered"]),
        pmf=np.asarray(record["pmf"], dtype=np.float64),
        arm=record["arm"],
        prompt_characters=int(record["prompt_characters"]),
        canary_share=float(record.get("canary_share", 0.0)),
    )
