"""What a training is told, and what it says afterwards."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from pipelines.gate import Verdict

MAX_WORDS: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """What to train, and when.

    Attributes:
        encoder_id: Whose contexts the policies see.
        context_dim: Length of a context.
        rollback_hold_s: After somebody went back to an older version nothing is promoted here for
            so long, seconds.
        on_evidence: Leave promotions to trials on live traffic; else an estimate on held-out
            decisions promotes at once.
        apprentice: The model that decides everything while the learners only learn; None lets them
            serve.
        encoder_dir: Where the encoder lies; MLflow's loader encodes prompts with it.
        cost_ceiling_usd: USD at and above which a call counts as fully expensive.
        exploration_total: Probability shared evenly over the arms offered.
        seed: Of initial policies and stored draws.
        holdout_share: Share of prompts that is judged on, never trained on.
        num_learners: Remote learners, for the lineage; 0 trains inside the trainer.
        max_tenant_share: Share of one training's rows that one tenant may give; 1 for no bound.
        min_interactions: New interactions that start a training.
        max_age_s: Train on fewer, but at least one, when so much time has passed, seconds.
        tolerance: Reward by which a retrained version may seem worse than a champion of its own
            kind and still replace it; against another kind it must seem better.
    """

    encoder_id: str
    context_dim: int
    cost_ceiling_usd: float
    exploration_total: float
    seed: int
    holdout_share: float
    min_interactions: int
    max_age_s: float
    max_tenant_share: float = 1.0
    num_learners: int = 0
    tolerance: float = 0.0
    rollback_hold_s: float = 0.0
    on_evidence: bool = False
    apprentice: str | None = None
    encoder_dir: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """What one learner made in one training.

    Attributes:
        kind: Which learner.
        version: The number it was registered as.
        rows: Interactions it was trained on.
        duration_s: How long its update took, seconds.
        verdict: What the gate said.
        promoted: Whether it is champion now.
    """

    kind: str
    version: int
    rows: int
    duration_s: float
    verdict: Verdict
    promoted: bool


@dataclass(slots=True, kw_only=True)
class TrainerStatus:
    """What the trainer has done since it started.

    Attributes:
        trained_to_seq: Last sequence number that a training has read.
        new_interactions: Interactions that wait for the next training, as last looked.
        heldout_rows: Held-out decisions that the gate judges on.
        trainings: Trainings finished.
        held: Why nothing is promoted for now, None where the gate alone decides.
        last_result: What the learners made in the last one.
        failures: Failures so far, of the loop and of each learner by kind.
        last_failures: The text of the last one of each.
    """

    trained_to_seq: int = 0
    new_interactions: int = 0
    heldout_rows: int = 0
    trainings: int = 0
    held: str | None = None
    last_result: tuple[TrainingResult, ...] = ()
    failures: dict[str, int] = field(default_factory=dict)
    last_failures: dict[str, str] = field(default_factory=dict)

    def failed(self, part: str, error: Exception) -> None:
        """Count a failure and keep its text."""
        self.failures[part] = self.failures.get(part, 0) + 1
        self.last_failures[part] = f"{type(error).__name__}: {error}"[:MAX_WORDS]
