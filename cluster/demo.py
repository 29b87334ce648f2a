"""The whole loop in a few minutes: route real prompts, learn, publish, compare, roll back."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import ray

from cluster.actors import NAMESPACE
from cluster.client import ServiceClient
from cluster.console import replay_progress
from cluster.launch import LaunchError, RunningService, local_service
from cluster.options import load_settings
from cluster.places import places
from cluster.settings import Settings
from pipelines.outcomes import OutcomeTable, arms_with_prices, load_outcomes
from pipelines.replay import Replay
from pipelines.replay_report import ReplayReport, VersionTraffic
from policies.artifact import PolicyArtifact
from policies.encoder import load_encoder
from policies.learners import load_policy
from policies.policy import Policy
from policies.preference import Preference, preference_grid
from policies.references import (
    HeldOut,
    References,
    arm_share,
    heldout_reward,
    reference_rewards,
)
from policies.versions import CHAMPION

NUM_HELDOUT: Final = 500
MARKER_FILE: Final = "made-by-barp-demo"
RATE_PER_S: Final = 40.0
# More requests in flight than cores only wait for the encoder.
CONCURRENCY: Final = 8
MAX_DELAY_S: Final = 1.0
SHARE_AT: Final = (0.1, 0.5, 0.95)
# Of the way from random to the best single model per preference; what the last version must reach.
LEAST_PROGRESS: Final = 0.97
LEAST_VERSIONS: Final = 3
NUM_AFTER_ROLLBACK: Final = 20

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionReward:
    """What one version earned.

    Attributes:
        heldout: Expected reward of its pmf on prompts never routed, mean over the grid.
        online: Mean reward of the requests it decided; None where it decided none.
        n: How many those were.
    """

    heldout: float
    online: float | None
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoReport:
    """Everything the demo measured."""

    replay: ReplayReport
    versions: tuple[int, ...]
    rewards: Mapping[int, VersionReward]
    references: References
    shares: Mapping[float, Mapping[str, float]]
    swap_ms: tuple[float, ...]
    rollback_ok: bool
    mlflow_uri: str

    @property
    def swaps(self) -> int:
        """How often another version took over while traffic ran; the first champion took none."""
        return len(self.versions) - 1

    def progress(self, reward: float) -> float:
        """How far a held-out reward is on the way from random (0) to best single (1)."""
        reach = self.references.best_single - self.references.random
        return (reward - self.references.random) / reach

    @property
    def leaders(self) -> tuple[str, ...]:
        """The arm with the largest share at each preference shown."""
        return tuple(max(share, key=lambda arm: share[arm]) for share in self.shares.values())

    @property
    def promises(self) -> dict[str, bool]:
        """What the demo promises to show, and whether this run did."""
        return {
            "no request failed": self.replay.failed == 0,
            "every outcome was joined": self.replay.feedback_joined == self.replay.feedback_sent,
            f"{LEAST_VERSIONS} learned versions served": len(self.versions) > LEAST_VERSIONS,
            "the last version is near or above the best single model": (
                self.progress(self.rewards[self.versions[-1]].heldout) >= LEAST_PROGRESS
            ),
            "the preference changes which model leads": len(set(self.leaders)) >= 2,
            "the rollback was followed": self.rollback_ok,
        }

    @property
    def holds(self) -> bool:
        """Whether every promise was kept."""
        return all(self.promises.values())

    def to_json(self) -> dict[str, Any]:
        """Return the object that `barp demo --json` prints."""
        by_version = {
            str(version): {"heldout": reward.heldout, "online": reward.online, "n": reward.n}
            for version, reward in self.rewards.items()
        }
        return {
            "requests": self.replay.requests,
            "failed": self.replay.failed,
            "feedback_sent": self.replay.feedback_sent,
            "feedback_joined": self.replay.feedback_joined,
            "versions": list(self.versions),
            "swaps": self.swaps,
            "swap_ms_max": max(self.swap_ms, default=None),
            "rollback_ok": self.rollback_ok,
            "reward": {
                "by_version": by_version,
                "random": self.references.random,
                "cheapest": self.references.cheapest,
                "largest": self.references.largest,
                "best_single": self.references.best_single,
                "oracle": self.references.oracle,
            },
            "arm_share": {str(weight): dict(share) for weight, share in self.shares.items()},
            "p50_ms": self.replay.p50_ms,
            "p99_ms": self.replay.p99_ms,
        }


def run_demo(state_dir: Path, *, seed: int, progress: Progress) -> DemoReport:
    """Run the loop on the outcomes of the package `paretobandit` and measure it.

    Args:
        state_dir: Folder for the state; replaced if an earlier demo left it.
        seed: Seed of split, order, preferences and delays.
        progress: Told each step in a few words.

    Raises:
        LaunchError: The folder holds something that is not a demo's, or the service cannot start.
    """
    fresh_folder(state_dir)
    table = load_outcomes("paretobandit")
    order = np.random.default_rng(seed).permutation(len(table.prompts))
    heldout, stream = table.take(order[:NUM_HELDOUT]), table.take(order[NUM_HELDOUT:])
    settings = demo_settings(state_dir, stream)
    with local_service(settings, progress=progress) as service:
        progress(f"traffic: {len(stream.prompts)} prompts with recorded outcomes, {service.url}")
        replay = play_stream(service, stream, seed=seed)
        progress("judging every version on prompts that were never routed")
        return measure(service, replay, stream=stream, heldout=heldout)


def fresh_folder(folder: Path) -> None:
    """Make an empty folder, removing only what an earlier demo marked as its own."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARKER_FILE).is_file():
            raise LaunchError(
                f"state_dir={folder} holds something that no demo made",
                field="state_dir",
                value=str(folder),
                allowed="a new folder, or one of an earlier demo",
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARKER_FILE).touch()


def demo_settings(state_dir: Path, stream: OutcomeTable) -> Settings:
    """Settings of a service that retrains every few seconds; tau is the dearest arm's mean."""
    return load_settings(
        state_dir=state_dir,
        port=0,
        cost_ceiling_usd=float(stream.costs.mean(axis=0).max()),
        retrain_min_interactions=150,
        # Some 1,300 requests are too few for trials on live traffic.
        gate="estimate",
        holdout_share=0.2,
        min_replicas=1,
        max_replicas=2,
    )


def play_stream(service: RunningService, stream: OutcomeTable, *, seed: int) -> ReplayReport:
    """Send every prompt once, report its outcome later, and wait until all are joined."""
    key = service.settings.api_key
    replay = Replay(
        stream,
        service.url,
        rate_per_s=RATE_PER_S,
        concurrency=CONCURRENCY,
        delay_s=(0.1, MAX_DELAY_S),
        cost_ceiling_usd=service.settings.cost_ceiling_usd,
        seed=seed,
        api_key=None if key is None else key.get_secret_value(),
    )
    with replay_progress() as show:
        return replay.run(show)


def measure(
    service: RunningService, replay: ReplayReport, *, stream: OutcomeTable, heldout: OutcomeTable
) -> DemoReport:
    """Compare all champions on the held-out prompts, then roll back."""
    tau = service.settings.cost_ceiling_usd
    key = service.settings.api_key
    grid = preference_grid()
    contexts = load_encoder(places(service.settings).encoder_dir).encode(heldout.prompts)
    with ServiceClient(service.url, api_key=key.get_secret_value() if key else None) as client:
        swap_ms = client.get("/v1/status")["publisher"]["swap_ms"]
        champions = served_versions(client)
        policies = champion_policies(champions)
        rollback_ok = roll_back(client, left=champions[-1])
    judged = HeldOut(
        contexts=contexts,
        scores=heldout.scores,
        costs=heldout.costs,
        arms=arms_with_prices(stream),
        cost_ceiling_usd=tau,
    )
    online = {traffic.version: traffic for traffic in replay.versions}
    last = policies[champions[-1]]
    return DemoReport(
        replay=replay,
        versions=champions,
        rewards={
            version: version_reward(policy, judged, grid, online.get(version))
            for version, policy in policies.items()
        },
        references=reference_rewards(judged, stream.scores, stream.costs, grid),
        shares={weight: arm_share(last, judged, weight) for weight in SHARE_AT},
        swap_ms=tuple(swap_ms),
        rollback_ok=rollback_ok,
        mlflow_uri=places(service.settings).registry_url,
    )


def served_versions(client: ServiceClient) -> tuple[int, ...]:
    """List every version that was ever champion, in order."""
    history = client.get("/v1/versions/history")["history"]
    return tuple(sorted({move["version"] for move in history if move["alias"] == CHAMPION}))


def champion_policies(versions: Sequence[int]) -> dict[int, Policy]:
    """Load versions from the registry."""
    registry = ray.get_actor("registry", namespace=NAMESPACE)
    artifacts: list[PolicyArtifact] = ray.get(
        [registry.artifact.remote(version) for version in versions]
    )
    return {
        version: load_policy(artifact)
        for version, artifact in zip(versions, artifacts, strict=True)
    }


def version_reward(
    policy: Policy,
    judged: HeldOut,
    grid: Sequence[Preference],
    online: VersionTraffic | None,
) -> VersionReward:
    """Put together what a version is worth and what it earned."""
    return VersionReward(
        heldout=float(heldout_reward(policy, judged, grid).mean()),
        online=None if online is None else online.mean_reward,
        n=0 if online is None else online.requests,
    )


def roll_back(client: ServiceClient, *, left: int) -> bool:
    """Go back one version; return whether the next decisions all carry the older one."""
    move = client.post("/v1/versions/rollback", {"who": "demo", "why": "shown by the demo"})
    decisions = [
        client.post("/v1/route", {"prompt": f"After the rollback, question {number}."})
        for number in range(NUM_AFTER_ROLLBACK)
    ]
    carried = {decision["policy_version"] for decision in decisions}
    return carried == {move["version"]} and move["version"] != left
