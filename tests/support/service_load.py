"""Clients of a running service, in a world of three models whose worth is fixed."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Self

import httpx

PRICES = {
    "cheap": {"input_usd_per_mtok": 0.1, "output_usd_per_mtok": 0.4},
    "middle": {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 4.0},
    "dear": {"input_usd_per_mtok": 5.0, "output_usd_per_mtok": 25.0},
}
QUALITY = {"cheap": 0.4, "middle": 0.7, "dear": 0.9}
COST_USD = {"cheap": 0.0002, "middle": 0.002, "dear": 0.01}


class Clients(ABC):
    """Threads that do something again and again, from the beginning of a block to its end.

    Args:
        clients: How many.
        rate: Turns a second of all together, as far as they keep up; None for as many as they can.
    """

    def __init__(self, clients: int, rate: float | None = None) -> None:
        self._pause_s = 0.0 if rate is None else clients / rate
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number,)) for number in range(clients)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _turns(self, number: int) -> Iterator[tuple[int, float]]:
        """Number a client's turns until the block ends; each with a weight on quality."""
        turn, due = 0, time.monotonic() - self._pause_s * number / len(self._threads)
        while not self._stop.is_set():
            turn += 1
            # Who was held up makes up for a second of it at most.
            due = max(due + self._pause_s, time.monotonic() - 1.0)
            self._stop.wait(max(0.0, due - time.monotonic()))
            yield turn, (number * 7 + turn) % 11 / 10

    @abstractmethod
    def _run(self, number: int) -> None:
        """What one client does."""


class Load(Clients):
    """Clients that route, and report outcomes, each one after the other, until they are stopped."""

    def __init__(
        self, url: str, *, clients: int, feedback: bool = True, rate: float | None = None
    ) -> None:
        self.answers: list[tuple[float, int, dict[str, Any]]] = []
        self.failures: list[str] = []
        self._url, self._feedback = url, feedback
        super().__init__(clients, rate)

    def _run(self, number: int) -> None:
        with httpx.Client(base_url=self._url, timeout=60.0) as http:
            for turn, weight in self._turns(number):
                body = {
                    "prompt": f"Question {turn} of client {number}: what is {turn} + {number}?",
                    "preference": {"quality": weight, "cost": 1 - weight},
                }
                try:
                    answer = http.post("/v1/route", json=body)
                    if answer.status_code != httpx.codes.OK:
                        self.failures.append(answer.text)
                        continue
                    decision = answer.json()
                    self.answers.append((time.time(), number, decision))
                    if self._feedback:
                        model = decision["model"]
                        report = {
                            "decision_id": decision["decision_id"],
                            "quality": QUALITY[model],
                            "cost_usd": COST_USD[model],
                        }
                        told = http.post("/v1/feedback", json=report)
                        if told.status_code != httpx.codes.ACCEPTED:
                            self.failures.append(told.text)
                except httpx.TransportError as error:
                    self.failures.append(repr(error))

    def versions(self) -> set[int]:
        """Which versions have answered so far."""
        return {decision["policy_version"] for _, _, decision in self.answers}
