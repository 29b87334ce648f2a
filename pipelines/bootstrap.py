"""Who decides before anything is learned: first versions of the learners, the rule, the champion.

A service that was given another encoder goes on with the newest version of that one: what was
learned from other contexts fits nothing here.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from pipelines.rows import InteractionSource
from pipelines.training import TrainingPlan
from pipelines.training_ports import RegistryPort
from policies.arms import PriceTable
from policies.fixed import FIXED, fixed_artifact
from policies.learning import Learner, LearnerSpec
from policies.versions import QUARANTINED, VersionInfo

logger = logging.getLogger(__name__)

WHO: Final = "trainer"
# Who moves the champion without being a person.
AUTOMATIC: Final = frozenset({WHO, "gate", "guardrail"})
# Tag of a fixed version: the model it takes.
RULE: Final = "rule"


def first_versions(
    learners: Sequence[Learner],
    registry: RegistryPort,
    source: InteractionSource,
    plan: TrainingPlan,
) -> dict[str, VersionInfo]:
    """See to it that each learner has a version and that one version serves; then do nothing.

    Returns:
        The newest version of each kind.

    Raises:
        Unavailable: Registry or keeper is away.
    """
    latest = latest_versions(registry, plan.encoder_id)
    for learner in learners:
        if learner.kind not in latest:
            prices = source.prices()
            initial = learner.initial(_spec(plan, prices))
            untrained = replace(initial, training=surroundings(plan, prices))
            version = registry.register(untrained, {}, {})
            logger.info("version %d: first of %s", version, learner.kind)
    if plan.apprentice is not None:
        _let_rule_decide(plan.apprentice, registry, source, plan)
    latest = latest_versions(registry, plan.encoder_id)
    champion = registry.champion()
    if champion is None or champion not in {one.version for one in fitting(registry, plan)}:
        why = "first champion: nothing is learned yet"
        if champion is not None:
            why = f"version {champion} does not fit encoder {plan.encoder_id}"
        first = latest[learners[0].kind].version
        registry.promote(first, who=WHO, why=why, instead_of=None)
    return latest


def latest_versions(registry: RegistryPort, encoder_id: str) -> dict[str, VersionInfo]:
    """Return the newest version of each kind that fits and is not in quarantine."""
    usable = [one for one in _of_encoder(registry, encoder_id) if not _quarantined(one)]
    return {version.kind: version for version in reversed(usable)}


def fitting(registry: RegistryPort, plan: TrainingPlan) -> list[VersionInfo]:
    """List the versions of this service's encoder, newest first."""
    return _of_encoder(registry, plan.encoder_id)


def cutoff(version: VersionInfo) -> int:
    """Return the last sequence number that a version has read, 0 for one that learned nothing."""
    return int(version.tags.get("last_seq", 0))


def surroundings(plan: TrainingPlan, prices: PriceTable) -> dict[str, Any]:
    """Note what a version needs beside itself to answer prompts outside of the service."""
    return {"encoder_dir": plan.encoder_dir, "prices": prices.to_json()}


def _let_rule_decide(
    model: str, registry: RegistryPort, source: InteractionSource, plan: TrainingPlan
) -> None:
    """Make the version that takes one model champion, unless a person has put another there."""
    known = fitting(registry, plan)
    rules = [one for one in known if one.kind == FIXED and one.tags.get(RULE) == model]
    if not rules:
        prices = source.prices()
        artifact = fixed_artifact(model, _spec(plan, prices))
        artifact = replace(artifact, training=surroundings(plan, prices))
        registry.register(artifact, {}, {RULE: model})
        known = fitting(registry, plan)
        rules = [one for one in known if one.kind == FIXED and one.tags.get(RULE) == model]
    rule, champion, last = rules[0], registry.champion(), registry.last_move()
    if champion == rule.version:
        return
    serves = champion in {one.version for one in known}
    if serves and last is not None and last.who not in AUTOMATIC and _after(last.at, rule):
        logger.warning("%s put version %d in place of the rule; it stays", last.who, last.version)
        return
    why = f"apprentice: {model} decides, the learners learn beside it"
    registry.promote(rule.version, who=WHO, why=why, instead_of=champion)


def _after(at: str, rule: VersionInfo) -> bool:
    """Say whether a moment is later than a version's making."""
    return datetime.fromisoformat(at) > datetime.fromisoformat(rule.created_at)


def _of_encoder(registry: RegistryPort, encoder_id: str) -> list[VersionInfo]:
    """List the versions of an encoder, newest first."""
    return [one for one in registry.versions() if one.tags.get("encoder_id") == encoder_id]


def _quarantined(version: VersionInfo) -> bool:
    """Say whether a version may not be gone on from."""
    return version.tags.get(QUARANTINED) == "true"


def _spec(plan: TrainingPlan, prices: PriceTable) -> LearnerSpec:
    """Say what a first version is made from: the arms and prices of now."""
    return LearnerSpec(
        arms=prices.arms,
        encoder_id=plan.encoder_id,
        context_dim=plan.context_dim,
        cost_ceiling_usd=plan.cost_ceiling_usd,
        exploration_total=plan.exploration_total,
        price_version=prices.version,
        seed=plan.seed,
    )
