"""What the actors know, as samples; what each version earned, from a real ledger."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from clock import START_S, Clock
from ledgers import ARM, TENANT, batch, open_ledger

from pipelines.earnings import Earned
from pipelines.observation import Observer
from policies.arms import PriceTable
from policies.errors import Unavailable
from policies.interaction import Outcome

CEILING_USD = 0.01
COUNTS = {"decisions": 9, "outcomes": 8, "joined": 6, "duplicates": 1, "expired": 0}
COUNTS |= {"interactions": 5, "pending": 1, "orphaned": 1, "last_seq": 5}
AGGREGATORS = ("aggregator-0", "aggregator-1")


class Actors:
    """Answers as the named actors do; those in `away` do not."""

    def __init__(self) -> None:
        self.away: set[str] = set()
        self.earned = [
            Earned(policy_version=4, interactions=2, quality=1.5, cost_usd=0.02, gain=1.0, loss=0.5)
        ]
        self.answers: dict[tuple[str, str], Any] = {
            ("keeper", "counts"): SimpleNamespace(**COUNTS),
            ("aggregator-0", "ready"): None,
            ("aggregator-1", "ready"): None,
            ("publisher", "status"): {
                "version": 4,
                "price_version": 2,
                "canary_share": 0.2,
                "published_at": START_S - 50.0,
                "revision": 7,
                "replicas": {"a": 7, "b": 6},
            },
            ("registry", "status"): {"refused": None, "watch_failures": 3, "champion": 4},
            ("registry", "artifact"): SimpleNamespace(
                training={"trained_at": "2027-01-15T08:00:00+00:00"}
            ),
            ("trainer", "status"): {
                "new_interactions": 12,
                "heldout_rows": 3,
                "held": None,
                "trainings": 2,
                "failures": {"barp": 1, "loop": 2},
            },
        }

    def __call__(self, actor: str, method: str, *args: object) -> Any:
        """Answer one call."""
        if actor in self.away:
            raise Unavailable(f"{actor} is not running")
        return self.earned if method == "earned" else self.answers[actor, method]


def observed(observer: Observer) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Observe once; return values by name and labels."""
    observer.observe()
    return {(name, tuple(labels.items())): value for name, labels, value, _ in observer.samples}


def test_every_part_is_seen() -> None:
    values = observed(
        Observer(Actors(), clock=Clock(), cost_ceiling_usd=CEILING_USD, aggregators=AGGREGATORS)
    )

    assert values["barp_rewards_pending", ()] == 1
    assert values["barp_replica_stale_seconds", (("replica", "a"),)] == 0
    assert values["barp_replica_stale_seconds", (("replica", "b"),)] == 50
    assert values["barp_training_failures_total", ()] == 3
    assert values["barp_champion_trained_timestamp_seconds", ()] == 1_800_000_000
    assert values["barp_part_up", (("part", "trainer"),)] == 1


def test_a_part_that_is_away_is_shown_to_be_and_hides_no_other() -> None:
    actors = Actors()
    actors.away = {"publisher", "aggregator-1"}

    values = observed(
        Observer(actors, clock=Clock(), cost_ceiling_usd=CEILING_USD, aggregators=AGGREGATORS)
    )

    assert values["barp_part_up", (("part", "publisher"),)] == 0
    assert values["barp_part_up", (("part", "keeper"),)] == 1
    assert values["barp_part_up", (("part", "aggregator-0"),)] == 1
    assert values["barp_part_up", (("part", "aggregator-1"),)] == 0
    assert ("barp_champion_version", ()) not in values


def test_what_versions_earned_adds_up() -> None:
    observer = Observer(
        Actors(), clock=Clock(), cost_ceiling_usd=CEILING_USD, aggregators=AGGREGATORS
    )
    observer.observe()

    values = observed(observer)

    version = (("policy_version", "4"),)
    assert values["barp_rewarded_interactions_total", version] == 4
    assert values["barp_reward_gain_total", version] == pytest.approx(2.0)


def test_a_restart_goes_on_with_what_versions_earned() -> None:
    first = Observer(Actors(), clock=Clock(), cost_ceiling_usd=CEILING_USD, aggregators=AGGREGATORS)
    first.observe()
    always = observed(first)
    second = Observer(
        Actors(), clock=Clock(), cost_ceiling_usd=CEILING_USD, aggregators=AGGREGATORS
    )
    second.restore(json.loads(json.dumps(first.state())))

    version = (("policy_version", "4"),)
    name = "barp_rewarded_interactions_total"
    assert observed(second)[name, version] == observed(first)[name, version]
    assert always[name, version] < observed(first)[name, version]


def test_names_say_which_numbers_only_grow() -> None:
    observer = Observer(
        Actors(), clock=Clock(), cost_ceiling_usd=CEILING_USD, aggregators=AGGREGATORS
    )
    observer.observe()
    assert {
        name.endswith("_total") for name, _, _, kind in observer.samples if kind == "counter"
    } == {True}


def test_a_ledger_sums_what_each_version_earned(ledger_url: str) -> None:
    """Two decisions of version 4 at weights 0.7 and 0.3, one dearer than the ceiling."""
    ledger = open_ledger(ledger_url, Clock())
    ledger.change_prices(lambda _: PriceTable(version=1, arms=(ARM,)))
    ledger.record([batch(["a", "b", "c"])])
    reports = [("a", 1.0, 0.002), ("b", 0.5, 0.05)]
    for name, quality, cost_usd in reports:
        outcome = Outcome(decision_id=name, quality=quality, cost_usd=cost_usd, final=True)
        ledger.submit([(TENANT, outcome)])

    [earned] = ledger.earned(0, ledger.last_seq(), CEILING_USD)

    assert (earned.policy_version, earned.interactions) == (4, 2)
    assert earned.quality == pytest.approx(1.5)
    assert earned.cost_usd == pytest.approx(0.052)
    assert earned.gain == pytest.approx(0.7 * 1.5)
    assert earned.loss == pytest.approx(0.3 * (0.2 + 1.0))
    assert ledger.earned(ledger.last_seq(), ledger.last_seq(), CEILING_USD) == []
    ledger.close()
