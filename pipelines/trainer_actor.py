"""The trainer as a named actor: looks for new interactions, trains when enough has come."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, TypeVar

from pipelines.apprentice import Apprentice
from pipelines.comparison import JudgePlan
from pipelines.events import EventOutbox
from pipelines.judge import Judge
from pipelines.lineage import code_version
from pipelines.remote import RemoteInteractions, RemoteRegistry
from pipelines.trainer import Trainer
from pipelines.training import TrainerStatus, TrainingPlan, TrainingResult
from policies.gradient import GradientTask, TrainingState
from policies.learners import LEARNERS, BarpDrLearner, BarpLearner, Learner, PosteriorLearner
from policies.tracing import tracing_from_environment

logger = logging.getLogger(__name__)

MAX_PAUSE_S: Final = 30.0
DEFAULT_LEARNERS: Final = ("posterior", "barp-dr")

T = TypeVar("T")


def _learners(kinds: Sequence[str], num_learners: int, learner_cpus: float) -> tuple[Learner, ...]:
    """Make learners, those by gradient with steps through RLlib."""

    def train(state: TrainingState, task: GradientTask) -> TrainingState:
        # Imported with the first training: that takes 3 s of CPU, which a start has no use for.
        from pipelines.rllib import rllib_train

        return rllib_train(num_learners, learner_cpus=learner_cpus)(state, task)

    learners: Mapping[str, Learner] = {
        "posterior": PosteriorLearner(),
        "barp-dr": BarpDrLearner(train=train),
        "barp": BarpLearner(train=train),
    }
    return tuple(learners[kind] for kind in kinds)


def _train_if_due(trainer: Trainer) -> None:
    """Train if enough is new."""
    if trainer.due():
        trainer.train()


class TrainerActor:
    """The trainer as a named Ray actor: training blocks, so it has one thread of its own."""

    def __init__(
        self,
        plan: TrainingPlan,
        *,
        learners: Sequence[str] = DEFAULT_LEARNERS,
        num_learners: int = 0,
        learner_cpus: float = 0.0,
        poll_s: float = 0.5,
        judging: JudgePlan | None = None,
        judge_every_s: float = 1.0,
        keeper: str = "keeper",
        registry: str = "registry",
    ) -> None:
        """Start to look for new interactions; registry and keeper may come up later.

        With a plan for judging, trials and the guardrail run beside the trainings, in a thread of
        their own: a training may take longer than a harmful version may serve. Where one model
        decides everything, what the learners would have gained is looked at there instead.
        """
        self._plan, self._kinds = plan, tuple(learners)
        self._num_learners, self._learner_cpus = num_learners, learner_cpus
        self._keeper, self._registry = keeper, registry
        self._trainer: Trainer | None = None
        self._events = EventOutbox()
        self._failures, self._last_failure, self._judge_failures = 0, "", 0
        self._made_local: tuple[Learner, ...] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="training")
        self._judging = judging
        self._judge: Judge | None = None
        self._apprentice: Apprentice | None = None
        self._judge_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="judging")
        if judging is not None or plan.apprentice is not None:
            every_s = judge_every_s
            self._watching = asyncio.get_running_loop().create_task(self._watch(every_s))
        self._looking = asyncio.get_running_loop().create_task(self._look(poll_s))

    async def ready(self) -> None:
        """Return once each learner has a version and one serves; raises Unavailable."""
        await self._in_thread(Trainer.bootstrap)

    async def train_now(self) -> list[TrainingResult]:
        """Train on whatever is new, due or not; see `Trainer.train`."""
        return await self._in_thread(Trainer.train)

    async def rebuild(self, version: int) -> dict[str, Any]:
        """See `pipelines.rebuild.rebuild`, as plain JSON values; no remote learners, one thread."""
        return asdict(
            await self._in_thread(lambda trainer: trainer.rebuild(version, self._local()))
        )

    async def status(self) -> dict[str, Any]:
        """See `TrainerStatus`, as plain JSON values; answers during a training too."""
        made = TrainerStatus() if self._trainer is None else self._trainer.status
        loop = {"loop_failures": self._failures, "last_loop_failure": self._last_failure or None}
        judged = None if self._judge is None else asdict(self._judge.status)
        failed = {"judge_failures": self._judge_failures, "judge": judged}
        learning = None if self._apprentice is None else asdict(self._apprentice.status)
        return asdict(made) | loop | failed | {"apprentice": learning}

    async def _watch(self, every_s: float) -> None:
        """Let the judge take a step; a failure is counted and makes the next one wait longer."""
        pause_s, last = every_s, ""
        while True:
            try:
                await asyncio.get_running_loop().run_in_executor(self._judge_thread, self._step)
                pause_s, last = every_s, ""
            except Exception as error:
                self._judge_failures += 1
                if str(error) != last:
                    logger.exception("judging")
                last, pause_s = str(error), min(2 * pause_s, MAX_PAUSE_S)
            await asyncio.sleep(pause_s)

    def _step(self) -> None:
        """Take one step of judging, once there is a trainer to have bootstrapped."""
        if self._trainer is None:
            return
        if self._plan.apprentice is not None:
            self._apprentice = self._apprentice or Apprentice(
                RemoteInteractions(self._keeper),
                RemoteRegistry(self._registry),
                model=self._plan.apprentice,
                cost_ceiling_usd=self._plan.cost_ceiling_usd,
                events=self._events,
            )
            self._apprentice.step()
        elif self._judging is not None:
            self._judge = self._judge or Judge(
                RemoteInteractions(self._keeper),
                RemoteRegistry(self._registry),
                plan=self._judging,
                events=self._events,
                held=self._trainer.held,
            )
            self._judge.step()

    async def _look(self, every_s: float) -> None:
        """Train when it is due; a failure is counted and makes the next look wait longer."""
        pause_s = every_s
        while True:
            try:
                await self._in_thread(_train_if_due)
                self._last_failure, pause_s = "", every_s
            except Exception as error:
                self._failures += 1
                if str(error) != self._last_failure:
                    logger.exception("training")
                self._last_failure, pause_s = str(error), min(2 * pause_s, MAX_PAUSE_S)
            await asyncio.sleep(pause_s)

    async def _in_thread(self, step: Callable[[Trainer], T]) -> T:
        """Run a step on the trainer in its thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: step(self._made()))

    def _local(self) -> tuple[Learner, ...]:
        """Return every learner there is, in this process."""
        if self._made_local is None:
            self._made_local = _learners(tuple(LEARNERS), 0, 0.0)
        return self._made_local

    def _made(self) -> Trainer:
        """Return the trainer, made and bootstrapped by the first call; raises Unavailable."""
        if self._trainer is None:
            trainer = Trainer(
                _learners(self._kinds, self._num_learners, self._learner_cpus),
                source=RemoteInteractions(self._keeper),
                registry=RemoteRegistry(self._registry),
                plan=self._plan,
                code=code_version(Path(__file__).parents[1]),
                clock=time.time,
                events=self._events,
                tracing=tracing_from_environment(),
            )
            trainer.bootstrap()
            self._trainer = trainer
        return self._trainer
