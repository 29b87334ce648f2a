"""`barp bench peers`: what one decision takes in-process, ours and that of a published package.

Same prompts, models and lessons, and the same encoder where it is named alike. Contenders take
turns, so that a slow phase of the machine hits all of them. No server, one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cluster.bench_traffic import NUM_ARMS, short_prompts
from pipelines.contenders import Contender, LearnerContender
from pipelines.outcomes import OutcomeTable
from pipelines.paretobandit import ParetoBanditContender
from pipelines.quality_plan import StreamDraws
from pipelines.quality_stream import TrainingPart, play
from policies.arms import Arm
from policies.encoder import Encoder, load_encoder
from policies.encoder_files import EncoderKind
from policies.learners import PosteriorLearner
from policies.learning import LearnerSpec
from policies.policy import sample
from policies.preference import Preference

LESSONS: Final = 600
SEED: Final = 0
CEILING_USD: Final = 0.01
PREFERENCE: Final = Preference(quality=0.7, cost=0.3)

PEERS: Final[Mapping[str, EncoderKind]] = {
    "barp_static": "static",
    "barp_minilm": "minilm",
    "paretobandit_minilm": "minilm",
}

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeersPlan:
    """What to measure.

    Attributes:
        encoder_dirs: The encoders by kind.
        requests: Decisions of each contender in a round.
        rounds: How often they take turns.
    """

    encoder_dirs: Mapping[EncoderKind, Path]
    requests: int = 200
    rounds: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Peer:
    """Who decides, and on whose contexts."""

    contender: Contender
    encoder: Encoder


def run_peers_benchmark(plan: PeersPlan, *, progress: Progress) -> dict[str, Any]:
    """Measure everybody; return plain JSON values by contender, times in milliseconds."""
    encoders = {kind: load_encoder(folder) for kind, folder in plan.encoder_dirs.items()}
    steps = len(PEERS) + plan.rounds
    peers: dict[str, _Peer] = {}
    for number, (name, kind) in enumerate(PEERS.items()):
        progress(f"teaching {name}", number, steps)
        encoder = encoders[kind]
        peers[name] = _Peer(contender=_taught(name, encoder), encoder=encoder)
    prompts = short_prompts(plan.requests * plan.rounds)
    times: dict[str, list[_Times]] = {name: [] for name in peers}
    for turn in range(plan.rounds):
        progress("deciding", len(PEERS) + turn, steps)
        part = prompts[turn * plan.requests : (turn + 1) * plan.requests]
        for name, peer in peers.items():
            times[name].append(_timed(peer, part))
    return {name: _summary(rounds) for name, rounds in times.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Times:
    """Seconds that each request of one turn took: to encode, to decide."""

    encode_s: NDArray[np.float64]
    decide_s: NDArray[np.float64]


def _timed(peer: _Peer, prompts: Sequence[str]) -> _Times:
    """Decide prompt by prompt."""
    encode_s, decide_s = np.empty(len(prompts)), np.empty(len(prompts))
    rng = np.random.default_rng(SEED)
    for row, prompt in enumerate(prompts):
        began = time.perf_counter()
        [context] = peer.encoder.encode([prompt])
        encoded = time.perf_counter()
        sample(peer.contender.pmf(context, PREFERENCE), uniform=rng.random())
        encode_s[row], decide_s[row] = encoded - began, time.perf_counter() - encoded
    return _Times(encode_s=encode_s, decide_s=decide_s)


def _summary(rounds: Sequence[_Times]) -> dict[str, float]:
    """Take medians over the rounds."""
    whole = [one.encode_s + one.decide_s for one in rounds]
    return {
        "rps": median(len(times) / float(times.sum()) for times in whole),
        "p50_ms": 1000 * median(float(np.percentile(times, 50)) for times in whole),
        "p99_ms": 1000 * median(float(np.percentile(times, 99)) for times in whole),
        "encode_p50_ms": 1000 * median(float(np.percentile(one.encode_s, 50)) for one in rounds),
        "decide_p50_ms": 1000 * median(float(np.percentile(one.decide_s, 50)) for one in rounds),
    }


def _taught(name: str, encoder: Encoder) -> Contender:
    """Make a contender and let it learn from made-up outcomes: the dearer a model, the better."""
    arms = tuple(
        Arm(name=f"model-{number:02}", usd_per_call=1e-4 * 1.5**number)
        for number in range(NUM_ARMS)
    )
    prompts, rng = short_prompts(LESSONS), np.random.default_rng(SEED)
    chances = 0.3 + 0.05 * np.arange(NUM_ARMS)
    table = OutcomeTable(
        sample_ids=tuple(str(number) for number in range(LESSONS)),
        datasets=("bench",) * LESSONS,
        prompts=tuple(prompts),
        arms=tuple(arm.name for arm in arms),
        scores=(rng.random((LESSONS, NUM_ARMS)) < chances).astype(np.float64),
        costs=np.tile([arm.usd_per_call for arm in arms], (LESSONS, 1)),
    )
    part = TrainingPart(
        table=table,
        contexts=encoder.encode(prompts),
        encoder_id=encoder.encoder_id,
        arms=arms,
        cost_ceiling_usd=CEILING_USD,
        delays=np.ones((LESSONS, NUM_ARMS)),
    )
    draws = StreamDraws(
        rows=np.arange(LESSONS),
        w_quality=rng.random(LESSONS),
        uniforms=rng.random(LESSONS),
        is_missing=np.zeros(LESSONS, dtype=np.bool_),
    )
    contender = _contender(name, arms, encoder)
    play(contender, part, draws)
    return contender


def _contender(name: str, arms: tuple[Arm, ...], encoder: Encoder) -> Contender:
    """Make a contender that knows nothing yet."""
    if name.startswith("paretobandit"):
        return ParetoBanditContender(arms, context_dim=encoder.dim, seed=SEED)
    spec = LearnerSpec(
        arms=arms,
        encoder_id=encoder.encoder_id,
        context_dim=encoder.dim,
        cost_ceiling_usd=CEILING_USD,
        price_version=1,
        seed=SEED,
    )
    return LearnerContender(PosteriorLearner(), spec)
