"""BaRP made to learn from a log: the doubly robust policy gradient, every row at many preferences.

The network and its policy are BaRP's (`policies.barp`). The caller draws the preference and the
world does not know it, so a logged row teaches any preference w': its reward there follows from
quality and cost, its weight is pi(a | x, w') / mu(a | x, w_logged). A model of every arm carries
most of the gradient, the log corrects it; `policies.gradient.doubly_robust_loss` has the rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from policies.arms import PriceTable
from policies.artifact import PolicyArtifact
from policies.barp import columns, first_version, next_version, preferences, train_here
from policies.control_variate import Modelled, constant, modelled
from policies.gradient import GradientTask, Train, TrainingState, doubly_robust_loss
from policies.learning import Experience, LearnerSpec, experience
from policies.list_prices import TYPICAL_PROMPT_CHARACTERS, costs_at, list_costs
from policies.memory import Memory
from policies.network import PARAMETERS, Head, initial_parameters
from policies.priced_memory import Priced, listed_costs
from policies.projection import fit_projection

KIND: Final = "barp-dr"
# Rows the components are fitted on at most: they change little after, and 20,000 take seconds.
PROJECTION_ROWS: Final = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class BarpDrSettings:
    """What the doubly robust policy gradient is set to.

    Attributes:
        head: Decision head.
        preference_units: Width of phi, the network over the preference.
        components: Principal components of the context that the network sees.
        min_rows_to_project: Rows the components are fitted on at least; before, levels only.
        learning_rate: Adam's step.
        minibatch: Rows a step, at all their preferences, shared by all learners.
        replays: Rows replayed for each new one, whatever the size of an update.
        max_steps: Steps of one update at most: what bounds its time.
        preferences_per_row: Preferences each row is priced at, one in each of as many even parts.
        control_variate: Model every arm; without, only the usual reward at each preference.
        bonus: Standard deviations of the model that a little-known arm is given on top.
        barrier: Weight of the log barrier, in deviations of the reward over the root of the rows
            remembered per arm: as inverse gap weighting explores less, the more it has seen.
        max_importance: Bound on pi / mu. Below 1 it also shrinks the correction as a whole.
        capacity: Rows remembered, half of them the newest.
    """

    head: Head = "mlp"
    preference_units: int = 16
    components: int = 16
    min_rows_to_project: int = 64
    learning_rate: float = 1e-2
    minibatch: int = 64
    replays: int = 32
    max_steps: int = 400
    preferences_per_row: int = 4
    control_variate: bool = True
    bonus: float = 0.5
    barrier: float = 0.2
    max_importance: float = 0.05
    capacity: int = 16_384


@dataclass(frozen=True, slots=True)
class BarpDrLearner:
    """Replays what it remembers, new interactions included.

    Attributes:
        settings: What first versions are set to; a later version keeps its parent's.
        train: Who takes the gradient steps: plain torch here, or RLlib's learners.
    """

    settings: BarpDrSettings = field(default_factory=BarpDrSettings)
    train: Train = train_here

    @property
    def kind(self) -> str:
        """Name in `PolicyArtifact.kind`."""
        return KIND

    def initial(self, spec: LearnerSpec) -> PolicyArtifact:
        """Start from the uniform policy, with nothing remembered."""
        settings, num_arms = self.settings, len(spec.arms)
        parameters = initial_parameters(
            settings.head,
            num_arms=num_arms,
            inputs=settings.components,
            units=settings.preference_units,
            seed=spec.seed,
        )
        projection = {
            "centre": np.zeros(spec.context_dim),
            "projection": np.zeros((settings.components, spec.context_dim)),
        }
        memory = Memory.empty(inputs=settings.components, num_arms=num_arms)
        listed = np.array([arm.list_cost_usd(TYPICAL_PROMPT_CHARACTERS) for arm in spec.arms])
        prices = {"list_cost_usd": listed.astype(np.float64), "list_cost_now_usd": listed}
        weights = TrainingState.fresh(parameters).weights() | projection | memory.weights() | prices
        return first_version(KIND, spec, asdict(settings), weights)

    def update(
        self, parent: PolicyArtifact, rows: pa.Table, prices: Mapping[int, PriceTable]
    ) -> PolicyArtifact:
        """Remember new rows, then follow the gradient on all that is remembered, at today's prices.

        Rows without both outcomes are skipped.
        """
        seen, costs = experience(parent, rows), list_costs(prices)
        grown = next_version(parent, seen, prices)
        grown = replace(
            grown, weights={**grown.weights, **listed_costs(parent, grown, seen, costs)}
        )
        known = seen.where(~np.isnan(seen.quality + seen.cost_usd))
        if len(known) == 0:
            memory = Memory.read(parent.weights).with_arms(len(grown.arms))
            return replace(grown, weights={**grown.weights, **memory.weights()})
        settings = BarpDrSettings(**dict(grown.hyperparameters))  # type: ignore[arg-type]  # its own
        state = TrainingState.read(grown.weights, PARAMETERS[settings.head])
        generator = np.random.default_rng([grown.seed, state.steps])
        projection = frozen_projection(grown, known, settings)
        newer = remembered(known, grown, projection, generator, costs)
        older = Memory.read(parent.weights).with_arms(len(grown.arms))
        memory = older.plus(newer, capacity=settings.capacity)
        steps = min(-(-len(known) * settings.replays // settings.minibatch), settings.max_steps)
        priced = Priced.read(replace(grown, weights={**grown.weights, **projection}))
        task = gradient_task(memory, settings, generator, steps=steps, priced=priced)
        trained = self.train(state, task)
        learned = trained.weights() | projection | memory.weights()
        return replace(grown, weights={**grown.weights, **learned})


def frozen_projection(
    parent: PolicyArtifact, seen: Experience, settings: BarpDrSettings
) -> dict[str, NDArray[np.float64]]:
    """Keep the parent's projection; fit it where there is none yet and rows are enough."""
    centre, projection = parent.weights["centre"], parent.weights["projection"]
    if not projection.any() and len(seen) >= settings.min_rows_to_project:
        fitted_on = seen.contexts[:PROJECTION_ROWS]
        centre, projection = fit_projection(fitted_on, components=settings.components)
    return {"centre": centre, "projection": projection}


def remembered(
    seen: Experience,
    version: PolicyArtifact,
    projection: Mapping[str, NDArray[np.float64]],
    generator: np.random.Generator,
    costs: Mapping[tuple[int, str], float],
) -> Memory:
    """Turn rows with both outcomes into what is kept of them.

    Costs are kept at the list price an arm was first seen with, scaled but not clipped: another
    price can then be put in for all of them.
    """
    laid_out = columns(seen, version.arms)
    kept_at = costs_at(version.weights["list_cost_usd"], version.arms, seen, costs)
    cost = kept_at / version.cost_ceiling_usd
    context = (seen.contexts - projection["centre"]) @ projection["projection"].T
    return Memory(
        context=context.astype(np.float16),
        arm=laid_out["arm"].astype(np.int16),
        offered=laid_out["offered"],
        propensity=laid_out["propensity"],
        outcome=np.stack([seen.quality, cost], axis=1).astype(np.float32),
        rank=generator.uniform(size=len(seen)),
    )


def gradient_task(
    memory: Memory,
    settings: BarpDrSettings,
    generator: np.random.Generator,
    *,
    steps: int,
    priced: Priced,
) -> GradientTask:
    """Draw the rows and preferences of every step, and price them."""
    model = control_variate(memory, settings, priced)
    per_row = settings.preferences_per_row
    num_rows = steps * settings.minibatch
    drawn = np.resize(generator.permutation(len(memory)), num_rows).repeat(per_row)
    w_quality = stratified(num_rows, per_row, generator)
    modelled = model.take(drawn)
    residual = model.surprise(np.full(len(memory), 0.5))
    per_arm = len(memory) / memory.offered.shape[1]
    return GradientTask(
        columns={
            "context": memory.context[drawn].astype(np.float32),
            "preference": preferences(w_quality),
            "offered": memory.offered[drawn],
            "arm": memory.arm[drawn].astype(np.int64),
            "propensity": memory.propensity[drawn],
            "worth": modelled.worth(w_quality, bonus=settings.bonus).astype(np.float32),
            "residual": modelled.surprise(w_quality).astype(np.float32),
        },
        minibatches=np.arange(num_rows * per_row).reshape(1, steps, -1),
        # The gradient is that of the policy without exploration: what is mixed in afterwards
        # would hide the corner that the barrier keeps it out of.
        exploration_total=0.0,
        learning_rate=settings.learning_rate,
        loss=partial(
            doubly_robust_loss,
            barrier=settings.barrier * float(np.sqrt((residual**2).mean() / per_arm)),
            max_importance=settings.max_importance,
        ),
    )


def control_variate(memory: Memory, settings: BarpDrSettings, priced: Priced) -> Modelled:
    """Model what is remembered: every arm, or only what is usual."""
    outcome = priced.outcome(memory)
    if not settings.control_variate:
        return constant(outcome, num_arms=len(priced.listed))
    context = memory.context.astype(np.float64) * priced.spread
    return modelled(
        np.hstack([np.ones((len(context), 1)), context]),
        memory.arm.astype(np.int64),
        outcome,
        listed=priced.listed,
    )


def stratified(num_rows: int, per_row: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Draw weights on quality, `per_row` for each row and one in each even part of [0, 1].

    Returns:
        Shape (num_rows * per_row,), a row's together.
    """
    within = generator.uniform(size=(num_rows, per_row))
    return np.asarray(((np.arange(per_row) + within) / per_row).reshape(-1))
