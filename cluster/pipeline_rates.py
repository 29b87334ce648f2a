"""How fast processes encode and decide without any server: the measure of what serving costs."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from policies.encoder import load_encoder
from policies.errors import ArtifactError
from policies.learners import load_policy
from policies.policy import sample
from policies.preference import Preference
from policies.publication import POINTER_FILE, read_pointer

PREFERENCE: Final = Preference(quality=0.7, cost=0.3)


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineRates:
    """Prompts a second, all processes together.

    Attributes:
        encode: Encoded alone.
        decide: Encoded and decided.
    """

    encode: float
    decide: float


def pipeline_rates(
    encoder_dir: Path, publish_dir: Path, prompts: Sequence[str], *, processes: int, seconds: float
) -> PipelineRates:
    """Measure the policy that is published, prompt by prompt, in as many processes as replicas.

    Args:
        encoder_dir: The encoder.
        publish_dir: Where the publisher leaves the champion.
        prompts: What to encode, over and over.
        processes: How many run side by side, one thread each.
        seconds: How long each of the two is measured.

    Raises:
        ArtifactError: Nothing is published there, or it is damaged.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        parts = [
            pool.submit(_rates, encoder_dir, publish_dir, list(prompts), seconds / 2)
            for _ in range(processes)
        ]
        rates = [part.result() for part in parts]
    return PipelineRates(encode=sum(r.encode for r in rates), decide=sum(r.decide for r in rates))


def _rates(
    encoder_dir: Path, publish_dir: Path, prompts: Sequence[str], seconds: float
) -> PipelineRates:
    """Measure in this process."""
    publication = read_pointer(publish_dir)
    if publication is None:
        raise ArtifactError(f"nothing is published in {publish_dir}", field=POINTER_FILE)
    encoder, policy = load_encoder(encoder_dir), load_policy(publication.artifact())
    offered, rng = publication.prices.offered(), np.random.default_rng(0)

    def encode(prompt: str) -> None:
        encoder.encode([prompt])

    def decide(prompt: str) -> None:
        [context] = encoder.encode([prompt])
        sample(policy.pmf(context, PREFERENCE, offered), uniform=rng.random())

    return PipelineRates(
        encode=_per_second(encode, prompts, seconds), decide=_per_second(decide, prompts, seconds)
    )


def _per_second(work: Callable[[str], None], prompts: Sequence[str], seconds: float) -> float:
    """Count how often something can be done."""
    for prompt in prompts[:20]:
        work(prompt)
    began, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < seconds:
        work(prompts[done % len(prompts)])
        done += 1
    return done / spent
