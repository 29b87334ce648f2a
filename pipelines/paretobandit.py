"""ParetoBandit from PyPI as a contender: the peer that is published as a package."""

from __future__ import annotations

import warnings
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from policies.arms import Arm
from policies.interaction import contexts
from policies.policy import all_on
from policies.preference import Preference

Array = NDArray[np.float64]
Context = NDArray[np.float32]

# It takes USD per million tokens, the outcomes know USD per call: calls of 1,000 tokens.
CALLS_PER_MTOK: Final = 1_000
# Its penalty on cost where quality has no weight at all.
COST_ONLY: Final = 1e6
# Length of the contexts its shipped principal components belong to, MiniLM's.
SHIPPED_DIM: Final = 384


class ParetoBanditContender:
    """ParetoBandit 0.1.1 from PyPI, cold, with its defaults and its own cost dial.

    One instance learns quality from every request. Its penalty on cost is an exchange rate, so a
    preference sets it to w_c / w_q; cost there is its own log-scaled list price. It is fed the
    components that it ships for MiniLM; contexts of another encoder it gets as they are.
    """

    def __init__(self, arms: tuple[Arm, ...], *, context_dim: int, seed: int) -> None:
        """Make a router over the arms, none of which it knows."""
        from pareto_bandit import BanditRouter, EphemeralContextStore, FeatureService

        self._names = [arm.name for arm in arms]
        self._matrix, self._offset = shipped_features(context_dim)
        self._router: Any = BanditRouter.create(
            model_registry={arm.name: _listed(arm) for arm in arms},
            priors="none",
            feature_service=FeatureService.for_precomputed(len(self._offset)),
            bandit_seed=seed,
            context_store=EphemeralContextStore(),
        )
        self._cost = np.array([self._router._get_normalized_cost(name) for name in self._names])

    def pmf(self, context: Context, preference: Preference) -> Array:
        """Let it route: all mass on what it takes. It counts the request."""
        self._router.cost_penalty = self._penalty(preference)
        name, _ = self._router.route(self._seen(context))
        return all_on(self._names.index(name), len(self._names))

    def greedy_pmf(self, context: Context, preference: Preference) -> Array:
        """Return all mass on the best mean after the penalty, as its `exploit` mode decides."""
        bandit, seen = self._router.bandit, self._seen(context)
        quality = np.array([bandit.theta[name] @ seen for name in self._names])
        worth = quality - self._penalty(preference) * self._cost
        return all_on(int(worth.argmax()), len(worth))

    def learn(self, rows: pa.Table) -> None:
        """Feed it the quality of each answer; requests were counted when they were routed."""
        outcomes = zip(
            rows["arm"].to_pylist(), contexts(rows), rows["quality"].to_pylist(), strict=True
        )
        for arm, context, quality in outcomes:
            if quality is not None:
                self._router.update(arm, self._seen(context), quality, advance_time=False)

    def _seen(self, context: Context) -> Array:
        """Return the vector its bandit works on."""
        return np.asarray(self._matrix @ context + self._offset, dtype=np.float64)

    @staticmethod
    def _penalty(preference: Preference) -> float:
        """Turn a preference into its exchange rate."""
        return preference.cost / preference.quality if preference.quality > 0 else COST_ONLY


def shipped_features(context_dim: int) -> tuple[Array, Array]:
    """Return the map, (matrix, offset), from a context to what its bandit sees, bias last.

    The components it ships where the context is MiniLM's, else the context itself: what its README
    tells the owner of another encoder to do.
    """
    if context_dim != SHIPPED_DIM:
        return np.eye(context_dim + 1, context_dim), np.append(np.zeros(context_dim), 1.0)
    from pareto_bandit import FeatureService
    from pareto_bandit.config import DEFAULT_PCA_PATH

    with warnings.catch_warnings():
        # It is pickled by an older scikit-learn.
        warnings.simplefilter("ignore")
        shipped = FeatureService(
            custom_encoder=_no_text, embedding_dim=context_dim, pca_path=DEFAULT_PCA_PATH
        )
        probes = np.vstack([np.zeros(context_dim), np.eye(context_dim)])
        seen = shipped._apply_pca_whitening_batch(shipped.pca.transform(probes))
    matrix = np.vstack([(seen[1:] - seen[0]).T, np.zeros(context_dim)])
    return matrix, np.append(seen[0], 1.0)


def _no_text(_text: str) -> Array:
    """Refuse, as it wants an encoder although contexts are encoded already."""
    raise TypeError("ParetoBandit asked for a text to be encoded: contexts are encoded already")


def _listed(arm: Arm) -> dict[str, float]:
    """Price an arm in its registry's terms."""
    usd_per_mtok = arm.usd_per_call * CALLS_PER_MTOK
    return {"input_cost_per_m": usd_per_mtok, "output_cost_per_m": usd_per_mtok}
