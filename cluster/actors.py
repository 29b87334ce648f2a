"""The named actors behind the replicas: started once, found by name, stopped in order."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import ray
from ray.exceptions import RayActorError

from cluster.local_ray import NAMESPACE as NAMESPACE
from cluster.places import places
from cluster.settings import Settings
from cluster.tenants import rulebook
from pipelines.aggregator import AggregatorActor
from pipelines.comparison import JudgePlan
from pipelines.guardrail import Guard
from pipelines.keeper import KeeperActor
from pipelines.metrics_actor import MetricsActor
from pipelines.publisher import PublisherActor
from pipelines.registry_actor import RegistryActor
from pipelines.trainer_actor import TrainerActor
from pipelines.training import TrainingPlan
from policies.encoder import describe_encoder
from policies.sharding import MAX_SHARDS
from services.shards import KEEPER, aggregator_names

READY_TIMEOUT_S: Final = 120.0
# Prometheus asks every 15 s or so.
OBSERVE_EVERY_S: Final = 5.0
STOP_TIMEOUT_S: Final = 20.0
ASK_AGAIN_S: Final = 0.2
# First to last: who is asked stands before who asks, and the keeper exports when all is recorded.
STOPPABLE: Final = frozenset({KEEPER, *aggregator_names(MAX_SHARDS)})
NAMES: Final = (
    "metrics", KEEPER, *aggregator_names(MAX_SHARDS), "publisher", "registry", "trainer",
)  # fmt: skip
# Of these, whom replicas do without while they serve the champion that was published last.
LEARNING: Final = frozenset({"registry", "trainer"})


def start_actors(settings: Settings) -> None:
    """Start every actor that does not run yet, and wait until each is ready.

    Detached and restarted for ever: they outlive whoever deployed them, and what they know is in
    ledger and registry.

    Raises:
        RouterError: What an actor says it cannot start for.
    """
    await_actors(begin_actors(settings))


def begin_actors(settings: Settings, *, but: Collection[str] = ()) -> list[Any]:
    """Start actors that do not run yet, `but` some; return their handles before they are ready.

    All at once: importing MLflow takes longest, and none needs another to start.
    """
    options = _placement(settings)
    return [
        _start(name, *made, options[name])
        for name, made in _classes(settings).items()
        if name not in but
    ]


def await_actors(handles: Sequence[Any]) -> None:
    """Wait until each is ready; one that dies meanwhile is started again by Ray, and asked again.

    Raises:
        RouterError: What an actor says it cannot start for.
        RayError: Not ready in time, or its constructor failed.
    """
    deadline = time.monotonic() + READY_TIMEOUT_S
    for handle in handles:
        while not _is_ready(handle, deadline):
            time.sleep(ASK_AGAIN_S)


def _is_ready(handle: Any, deadline: float) -> bool:
    """Return once an actor is ready; False where it has died under the question."""
    try:
        ray.get(handle.ready.remote(), timeout=max(0.0, deadline - time.monotonic()))
    except RayActorError as error:
        if error.actor_init_failed or time.monotonic() > deadline:
            raise
        return False
    return True


def _start(name: str, actor_class: type, arguments: dict[str, Any], options: dict[str, Any]) -> Any:
    """Start one actor, or find it; returns before it is ready."""
    return (
        ray.remote(actor_class)
        .options(
            name=name,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            **options,
        )
        .remote(**arguments)
    )


def _placement(settings: Settings) -> dict[str, dict[str, Any]]:
    """Say, as options of Ray actors, what each reserves and on which nodes it would rather be."""
    nodes: dict[str, Any] = {}
    if settings.control_nodes is not None:
        label, _, value = settings.control_nodes.partition("=")
        # Preferred, not required: with these nodes lost the ledger must come up elsewhere.
        nodes = {
            "label_selector": {label: value},
            "fallback_strategy": [{"label_selector": {}}],
        }
    cpus = dict.fromkeys(NAMES, 0.0) | {"trainer": settings.trainer_cpus}
    return {name: {"num_cpus": cpus[name], **nodes} for name in NAMES}


def stop_actors() -> None:
    """End every actor, last started first; aggregators and keeper finish what they have in hand.

    The others may be ended at any moment: what they know is in ledger and registry.
    """
    for name in reversed(NAMES):
        try:
            handle = ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:
            continue
        if name in STOPPABLE:
            ray.get(handle.stop.remote(), timeout=STOP_TIMEOUT_S)
        ray.kill(handle)


def _classes(settings: Settings) -> Mapping[str, tuple[type, dict[str, Any]]]:
    """Return each actor's class and what its constructor needs."""
    place, plan = places(settings), training_plan(settings)
    ledger = {
        "ledger_url": place.ledger_url,
        "rules": rulebook(settings),
        "orphan_after_s": settings.orphan_after_s,
    }
    return {
        "metrics": (
            MetricsActor,
            {
                "events_dir": str(place.events_dir),
                "webhook_url": settings.event_webhook_url,
                "webhook_secret": settings.event_webhook_secret,
                "cost_ceiling_usd": settings.cost_ceiling_usd,
                "observe_every_s": OBSERVE_EVERY_S,
                "aggregators": aggregator_names(settings.aggregator_shards),
            },
        ),
        KEEPER: (
            KeeperActor,
            {
                **ledger,
                "dataset_dir": place.dataset_dir,
                "export_every_s": settings.export_every_s,
                "retention_s": settings.ledger_retention_s,
            },
        ),
        **{
            name: (AggregatorActor, {**ledger, "shard": shard})
            for shard, name in enumerate(aggregator_names(settings.aggregator_shards))
        },
        "publisher": (PublisherActor, {"folder": place.publish_dir}),
        "registry": (
            RegistryActor,
            {
                "uri": place.registry_url,
                "artifact_dir": place.artifact_dir,
                "alias_watch_s": settings.alias_watch_s,
                "encoder_id": plan.encoder_id,
                "canary_share": settings.canary_share,
            },
        ),
        "trainer": (
            TrainerActor,
            {
                "plan": plan,
                "learners": settings.learners.split(","),
                "num_learners": settings.num_learners,
                "learner_cpus": settings.learner_cpus,
                "poll_s": settings.retrain_poll_s,
                "judging": judge_plan(settings),
            },
        ),
    }


def judge_plan(settings: Settings) -> JudgePlan | None:
    """Pick what is asked of challengers and new champions; None where none is tried."""
    if settings.gate == "estimate" or settings.apprentice is not None:
        return None
    return JudgePlan(
        cost_ceiling_usd=settings.cost_ceiling_usd,
        exploration_total=settings.exploration_total,
        holdout_share=settings.holdout_share,
        shadow_decisions=settings.shadow_decisions,
        margin=settings.gate_margin,
        max_decisions=settings.gate_max_decisions,
        guard=Guard(
            decisions=settings.probation_decisions,
            loss=settings.guardrail_loss,
            answer_within_s=settings.guardrail_answer_s,
        ),
    )


def training_plan(settings: Settings) -> TrainingPlan:
    """Pick what to train, and when; raises ArtifactError for a damaged encoder."""
    encoder_dir = places(settings).encoder_dir
    encoder_id, context_dim = describe_encoder(encoder_dir)
    return TrainingPlan(
        encoder_id=encoder_id,
        context_dim=context_dim,
        encoder_dir=encoder_dir,
        cost_ceiling_usd=settings.cost_ceiling_usd,
        exploration_total=settings.exploration_total,
        seed=settings.seed,
        holdout_share=settings.holdout_share,
        num_learners=settings.num_learners,
        max_tenant_share=settings.max_tenant_share,
        min_interactions=settings.retrain_min_interactions,
        max_age_s=settings.retrain_max_age_s,
        tolerance=settings.retrain_tolerance,
        rollback_hold_s=settings.rollback_hold_s,
        on_evidence=settings.gate == "evidence",
        apprentice=settings.apprentice,
    )
