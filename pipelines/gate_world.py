"""Recorded outcomes as a world with known truth: versions to judge, requests to judge them on.

Versions are trained on one half of the prompts by the real learner; the other half is the pool
that requests are drawn from, with replacement. Since every model's outcome is known there, so is
every version's true reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.contenders import PRICE_VERSION
from pipelines.evidence import FOLDS, MODEL_COMPONENTS, Evidence
from pipelines.learner_settings import learner_named
from pipelines.quality import GRID, EncodedOutcomes, SeedRun, prepared
from pipelines.quality_plan import QualityPlan
from pipelines.quality_stream import play
from policies.arms import PriceTable
from policies.artifact import PolicyArtifact
from policies.evaluation import LoggedRows
from policies.learners import load_policy
from policies.learning import LearnerSpec
from policies.policy import mix_canary
from policies.preference import Preference
from policies.projection import features, fit_projection
from policies.reward import scaled_cost

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

# The preferences of the requests: most callers leave the default, the others turn the dial.
DEFAULT_POINT: Final = 7
DEFAULT_SHARE: Final = 0.7
# Where every decision is scored once more, of GRID.
GUARD_POINTS: Final = (0, 2, 5, 8, 10)
# Mean decisions of a session.
SESSION_MEAN: Final = 1.5


class _EvenLog:
    """Chooses every arm alike, and keeps what came back: the log that versions are trained on."""

    def __init__(self, num_arms: int) -> None:
        self._even, self.rows = np.full(num_arms, 1.0 / num_arms), list[pa.Table]()

    def pmf(self, context: NDArray[np.float32], preference: Preference) -> Array:
        """Return the same for every request."""
        return self._even

    def greedy_pmf(self, context: NDArray[np.float32], preference: Preference) -> Array:
        """Return the same."""
        return self._even

    def learn(self, rows: pa.Table) -> None:
        """Keep the rows."""
        self.rows.append(rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A pool of n prompts over K arms.

    Attributes:
        features: What the reward model sees, shape (n, features).
        outcomes: Quality and minus scaled cost, shape (n, K, 2).
        run: The training half, and the pool's contexts and arms.
        learner: Who makes the versions.
        cost_ceiling_usd: tau, USD.
    """

    features: Array
    outcomes: Array
    run: SeedRun
    learner: str
    cost_ceiling_usd: float

    def asked_shares(self) -> Array:
        """Return how often each preference of GRID is asked for."""
        shares = np.full(len(GRID), (1.0 - DEFAULT_SHARE) / len(GRID))
        shares[DEFAULT_POINT] += DEFAULT_SHARE
        return shares

    def truth(self, choices: Array) -> float:
        """Return the true mean reward of choices, shape (G, n, K), at the preferences asked."""
        trade_offs = np.array([[point.quality, point.cost] for point in GRID])
        rewards = np.einsum("nko,go->gnk", self.outcomes, trade_offs)
        return float(self.asked_shares() @ (choices * rewards).sum(axis=2).mean(axis=1))

    def cost(self, choices: Array) -> float:
        """Return the true mean of what choices cost, scaled, at the preferences asked."""
        costs = (choices * -self.outcomes[None, :, :, 1]).sum(axis=2).mean(axis=1)
        return float(self.asked_shares() @ costs)

    def stakes(self) -> float:
        """Return what routing is worth: the best single arm's true reward less a blind guess's."""
        trade_offs = np.array([[point.quality, point.cost] for point in GRID])
        arms = np.einsum("nko,go->gk", self.outcomes, trade_offs) / len(self.outcomes)
        return float(self.asked_shares() @ (arms.max(axis=1) - arms.mean(axis=1)))

    def even_log(self, *, seed: int) -> pa.Table:
        """Write a log of the training half, every arm as likely, schema INTERACTION_SCHEMA."""
        log, draws = _EvenLog(len(self.run.part.arms)), self.run.draws
        rng = np.random.default_rng([self.run.seed, seed, 2])
        order = rng.permutation(len(draws.rows))
        play(
            log,
            self.run.part,
            replace(
                draws,
                rows=draws.rows[order],
                w_quality=draws.w_quality[order],
                uniforms=rng.uniform(size=len(order)),
            ),
        )
        return pa.concat_tables(log.rows)

    def untrained(self, *, seed: int) -> PolicyArtifact:
        """Make a version that has learned nothing."""
        part = self.run.part
        spec = LearnerSpec(
            arms=part.arms,
            encoder_id=part.encoder_id,
            context_dim=part.contexts.shape[1],
            cost_ceiling_usd=self.cost_ceiling_usd,
            price_version=PRICE_VERSION,
            seed=seed,
        )
        return learner_named(self.learner).initial(spec)

    def trained(self, parent: PolicyArtifact, rows: pa.Table) -> PolicyArtifact:
        """Make the next version from rows."""
        prices = {PRICE_VERSION: PriceTable(version=PRICE_VERSION, arms=self.run.part.arms)}
        return learner_named(self.learner).update(parent, rows, prices)

    def choices(self, artifact: PolicyArtifact) -> Array:
        """Lay out a version as it is served: its pmf at each preference, shape (G, n, K)."""
        policy, pool = load_policy(artifact), self.run.held_out
        return np.stack(
            [
                policy.assess(pool.contexts, [point] * len(pool.contexts), pool.arms).pmf
                for point in GRID
            ]
        )


def make_world(outcomes: EncodedOutcomes, *, learner: str, seed: int) -> World:
    """Part the prompts into the half that versions learn from and the pool."""
    run = prepared(QualityPlan(learners=(learner,), split=0.5), outcomes, None, seed=seed)
    pool = run.held_out
    centre, projection = fit_projection(pool.contexts, components=MODEL_COMPONENTS)
    scaled = scaled_cost(pool.costs, cost_ceiling_usd=pool.cost_ceiling_usd)
    return World(
        features=features(pool.contexts, centre, projection)[:, 1:],
        outcomes=np.stack([pool.scores, -scaled], axis=2),
        run=run,
        learner=learner,
        cost_ceiling_usd=pool.cost_ceiling_usd,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lateness:
    """How feedback comes: some models' calls take longer, and some outcomes are never heard of.

    Attributes:
        delay: Requests until an outcome is known, in the mean over the models; the last model of
            the pool takes three times as long as the first.
        missing: Share of the outcomes that never come.
    """

    delay: float = 0.0
    missing: float = 0.0

    def known_at(self, arm: Indices, rng: np.random.Generator, *, num_arms: int) -> Array:
        """Draw after how many requests each outcome is known, infinite for never, shape (n,)."""
        made = np.arange(1.0, len(arm) + 1.0)
        if not self.delay and not self.missing:
            return made
        pace = np.linspace(0.5, 1.5, num_arms)[arm]
        known = made + np.floor(rng.exponential(self.delay * pace))
        return np.where(rng.uniform(size=len(arm)) < self.missing, np.inf, known)


AT_ONCE: Final = Lateness()


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Requests decided by champion and canary, n of them, and what came of them.

    Attributes:
        prompts: Which prompt of the pool each is, shape (n,).
        asked: Position in GRID of its preference, shape (n,).
        units: Its session, numbered in order, shape (n,).
        by_canary: Whether the canary drew, shape (n,).
        arm: The arm it went to, shape (n,).
        propensity: Of that arm under the mixture, shape (n,).
        known_at: After how many requests its outcome is known, infinite for never, shape (n,).
    """

    prompts: Indices
    asked: Indices
    units: Indices
    by_canary: NDArray[np.bool_]
    arm: Indices
    propensity: Array
    known_at: Array

    def evidence(self, world: World, champion: Array, challenger: Array, n: int) -> Evidence:
        """Lay out for the gate what is known after `n` requests."""
        known = np.flatnonzero(self.known_at[:n] <= n)
        prompts, asked, arm = self.prompts[known], self.asked[known], self.arm[known]
        w_quality = np.array([point.quality for point in GRID])[asked]
        guard = np.ix_(np.array(GUARD_POINTS), prompts)
        return Evidence(
            log=LoggedRows(
                contexts=world.features[prompts],
                arm=arm,
                propensity=self.propensity[known],
                outcomes=world.outcomes[prompts, arm],
                folds=prompts % FOLDS,
            ),
            units=self.units[known],
            w_quality=w_quality,
            champion=champion[asked, prompts],
            challenger=challenger[asked, prompts],
            grid=[GRID[point] for point in GUARD_POINTS],
            champion_on_grid=champion[guard],
            challenger_on_grid=challenger[guard],
        )

    def where(self, keep: NDArray[np.bool_]) -> Traffic:
        """Keep some requests, `keep` of shape (n,), their outcomes known at once."""
        return Traffic(
            prompts=self.prompts[keep],
            asked=self.asked[keep],
            units=self.units[keep],
            by_canary=self.by_canary[keep],
            arm=self.arm[keep],
            propensity=self.propensity[keep],
            known_at=np.arange(1.0, keep.sum() + 1.0),
        )


def draw_traffic(
    world: World,
    champion: Array,
    challenger: Array,
    n: int,
    *,
    share: float,
    rng: np.random.Generator,
    lateness: Lateness = AT_ONCE,
) -> Traffic:
    """Draw requests and decide them as replicas do: a session goes to one version, which draws.

    Args:
        world: Where prompts and outcomes come from.
        champion: What serves, laid out, shape (G, prompts, K).
        challenger: What is on trial, likewise.
        n: How many requests.
        share: The canary's share of the sessions; 0 leaves all to the champion.
        rng: Draws everything.
        lateness: When outcomes are known.
    """
    prompts = rng.integers(len(world.features), size=n)
    asked = rng.choice(len(GRID), size=n, p=world.asked_shares())
    sizes = rng.geometric(1.0 / SESSION_MEAN, size=n)
    units = np.repeat(np.arange(n), sizes)[:n]
    on_canary = (rng.uniform(size=n) < share)[units]
    of_champion, of_canary = champion[asked, prompts], challenger[asked, prompts]
    drawn_from = np.where(on_canary[:, None], of_canary, of_champion)
    below = drawn_from.cumsum(axis=1) <= rng.uniform(size=(n, 1))
    arm = np.minimum(below.sum(axis=1), drawn_from.shape[1] - 1)
    mixture = mix_canary(of_champion, of_canary, share=share)
    return Traffic(
        prompts=prompts,
        asked=asked,
        units=units,
        by_canary=on_canary,
        arm=arm,
        propensity=mixture[np.arange(n), arm],
        known_at=lateness.known_at(arm, rng, num_arms=drawn_from.shape[1]),
    )


def pick(options: Sequence[Array], rng: np.random.Generator) -> Array:
    """Draw one of several versions."""
    return options[int(rng.integers(len(options)))]
