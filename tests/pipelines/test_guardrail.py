"""The guardrail on made-up probations: what it sees, and how often it cries for nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from made_evidence import evidence

from pipelines.answers import Answer
from pipelines.evidence import Evidence
from pipelines.guardrail import Guard, breach, exploration_collapse, silence
from pipelines.judgement import next_look
from policies.posterior import PosteriorSettings, explored_shares

GUARD = Guard()


def probation(*, loss: float, n: int, seed: int = 0) -> Evidence:
    """A champion that lost against its predecessor, which keeps a fifth of the traffic."""
    return evidence(gain=loss, n=n, seed=seed)


def first(found: Evidence, n: int) -> Evidence:
    """Take the first decisions."""
    log = found.log
    return replace(
        found,
        log=replace(
            log,
            contexts=log.contexts[:n],
            arm=log.arm[:n],
            propensity=log.propensity[:n],
            outcomes=log.outcomes[:n],
            folds=log.folds[:n],
        ),
        units=found.units[:n],
        w_quality=found.w_quality[:n],
        champion=found.champion[:n],
        challenger=found.challenger[:n],
        champion_on_grid=found.champion_on_grid[:, :n],
        challenger_on_grid=found.challenger_on_grid[:, :n],
    )


def test_a_loss_is_seen_and_an_equal_champion_left_alone() -> None:
    reason = breach(probation(loss=0.1, n=1_500), GUARD)
    assert reason is not None
    assert "reward fell" in reason
    assert breach(probation(loss=0.0, n=2_000), GUARD) is None
    assert breach(probation(loss=-0.1, n=2_000), GUARD) is None


def test_ten_quiet_hours_raise_at_most_one_alarm() -> None:
    """36 probations, one for each retraining in ten hours at 200 requests/s and one in 1,000 s.

    Each is looked at as the judge does, from the first row to the last; two equal versions.
    """
    alarms = 0
    for seed in range(36):
        quiet, look = probation(loss=0.0, n=2_000, seed=seed), 200
        while look <= 2_000:
            if breach(first(quiet, look), GUARD) is not None:
                alarms += 1
                break
            look = next_look(look)
    assert alarms <= 1


def test_calls_that_cost_more_for_nothing_are_a_breach() -> None:
    same = probation(loss=0.0, n=3_000)
    # Only the champion's arm is dear; its quality makes up for half of it.
    dear = same.log.arm == 0
    outcomes = np.stack([np.where(dear, 0.7, 0.5), np.where(dear, -0.5, -0.1)], axis=1)
    noisy = outcomes + np.random.default_rng(0).normal(scale=0.05, size=outcomes.shape)
    asked = np.full(len(same), 0.66)
    costly = replace(same, log=replace(same.log, outcomes=noisy), w_quality=asked)
    reason = breach(costly, GUARD)
    assert reason is not None
    assert "cost rose" in reason


def test_exploration_that_is_gone_is_said() -> None:
    exploring = np.tile([0.98, 0.01, 0.01], (300, 1))
    gone = np.tile([0.9999, 0.00005, 0.00005], (300, 1))
    none = np.tile([1.0, 0.0, 0.0], (300, 1))
    assert exploration_collapse(exploring, exploration_total=0.03) is None
    assert exploration_collapse(gone, exploration_total=0.03) is not None
    assert exploration_collapse(none, exploration_total=0.03) is not None
    assert exploration_collapse(gone[:50], exploration_total=0.03) is None
    assert exploration_collapse(none, exploration_total=0.0) is None


def test_a_posterior_that_explores_as_it_is_set_to_has_not_collapsed() -> None:
    """Most of its exploration goes to models that lose little; all the others share a tenth."""
    quality = np.linspace(0.9, 0.1, 11)
    shares = explored_shares(quality, np.zeros(11), PosteriorSettings())
    sure = 0.98 * np.eye(11)[np.zeros(300, dtype=np.int64)] + 0.02 * shares
    assert exploration_collapse(sure, exploration_total=0.02) is None
    assert exploration_collapse(sure, exploration_total=0.2) is not None


def answers(
    *, champion: float, control: float, n: int, seed: int = 0, a_session: int = 1
) -> list[Answer]:
    """Decisions of which some get feedback, as likely as given for whoever drew; by sessions.

    A session is either heard of or not, as where one caller's reports are broken.
    """
    rng = np.random.default_rng(seed)
    found = []
    for session in range(n // a_session):
        by_control = bool(rng.uniform() < 0.2)
        came = bool(rng.uniform() < (control if by_control else champion))
        found += [
            Answer(
                decision_id=f"{session}-{index}",
                unit=str(session),
                by_canary=by_control,
                canary_share=0.2,
                judged=came,
                reported=came,
            )
            for index in range(a_session)
        ]
    return found


def test_feedback_that_stops_coming_is_a_breach() -> None:
    """Whether nothing is heard at all, or only the quality is missing."""
    reason = silence(answers(champion=0.6, control=0.9, n=1_000), GUARD)
    assert reason is not None
    assert "anything is heard within 30 s fell by" in reason
    unjudged = answers(champion=0.6, control=0.9, n=1_000)
    reason = silence([replace(one, reported=True) for one in unjudged], GUARD)
    assert reason is not None
    assert "with a quality" in reason


def test_feedback_that_is_rare_for_both_or_more_often_now_is_none() -> None:
    assert silence(answers(champion=0.3, control=0.3, n=2_000), GUARD) is None
    assert silence(answers(champion=0.0, control=0.0, n=2_000), GUARD) is None
    assert silence(answers(champion=0.9, control=0.5, n=2_000), GUARD) is None
    assert silence(answers(champion=0.0, control=1.0, n=100), GUARD) is None
    assert silence([], GUARD) is None


def test_quiet_probations_raise_no_alarm_for_feedback() -> None:
    """100 probations of ten decisions a session, which share their fate; ten looks at each."""
    alarms = 0
    for seed in range(100):
        quiet = answers(champion=0.7, control=0.7, n=4_000, seed=seed, a_session=10)
        alarms += any(silence(quiet[:n], GUARD) is not None for n in range(400, 4_001, 400))
    assert alarms <= 2
