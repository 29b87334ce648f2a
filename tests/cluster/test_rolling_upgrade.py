"""An older release and this one, both whole services, side by side on one ledger, there and back.

The older release is the folder that BARP_OLD_RELEASE names, a checkout of it. Long, so by itself:
`BARP_OLD_RELEASE=../v0.1 make test-cluster`.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from cluster_load import wait_for
from encoders import small_static_encoder
from service_load import COST_USD, PRICES, QUALITY, Clients
from sqlalchemy import create_engine, text

from cluster.service_process import ServiceProcess, service_process

OLD_RELEASE_VARIABLE = "BARP_OLD_RELEASE"
THIS_RELEASE = Path(__file__).parents[2]

pytestmark = pytest.mark.cluster


class Traffic(Clients):
    """Clients that ask whichever releases are in rotation, and report to another one than decided.

    A release is put into rotation when it is ready and taken out before it stops, as a load
    balancer does, so that no request may fail.
    """

    def __init__(self, *, clients: int) -> None:
        self.acknowledged: list[str] = []
        self.decided: Counter[str] = Counter()
        self.failures: list[str] = []
        self._rotation: list[tuple[str, str]] = []
        self._under_way: Counter[str] = Counter()
        self._lock = threading.Lock()
        super().__init__(clients)

    def take_in(self, release: str, url: str) -> None:
        """Send requests to a service, too."""
        with self._lock:
            self._rotation.append((release, url))

    def take_out(self, release: str) -> None:
        """Send it no more, and wait for what is under way."""
        with self._lock:
            self._rotation = [one for one in self._rotation if one[0] != release]
        wait_for(lambda: not self._under_way[release], timeout_s=30)

    def _run(self, number: int) -> None:
        for turn, weight in self._turns(number):
            body = {
                "prompt": f"Question {turn} of client {number}",
                "preference": {"quality": weight, "cost": 1 - weight},
            }
            decision = self._post(turn + number, "/v1/route", body)
            if decision is None:
                continue
            model = str(decision["model"])
            report = {
                "decision_id": decision["decision_id"],
                "quality": QUALITY[model],
                "cost_usd": COST_USD[model],
            }
            if self._post(turn + number + 1, "/v1/feedback", report) is not None:
                self.acknowledged.append(str(decision["decision_id"]))
            time.sleep(0.02)

    def _post(self, turn: int, path: str, body: Mapping[str, object]) -> dict[str, object] | None:
        with self._lock:
            release, url = self._rotation[turn % len(self._rotation)]
            self._under_way[release] += 1
        try:
            answer = httpx.post(f"{url}{path}", json=body, timeout=30).raise_for_status()
        except httpx.HTTPError as error:
            self.failures.append(f"{release} {path}: {error!r}")
            return None
        finally:
            with self._lock:
                self._under_way[release] -= 1
        with self._lock:
            self.decided[release] += path == "/v1/route"
        found: dict[str, object] = answer.json()
        return found

    def goes_on(self, *releases: str) -> None:
        """Wait until each of some releases has decided forty times more."""
        before = self.decided.copy()
        wait_for(
            lambda: all(self.decided[one] >= before[one] + 40 for one in releases), timeout_s=60
        )


class Releases(ExitStack):
    """Services of several releases on one ledger, each with a registry of its own."""

    def __init__(self, folder: Path, ledger_url: str) -> None:
        self._folder, self._ledger_url = folder, ledger_url
        # As an older release built it: it may not know of any form of a prompt.
        self._encoder = small_static_encoder(folder / "encoder", form=0)
        super().__init__()

    def start(self, release: str, code: Path) -> tuple[ServiceProcess, ExitStack]:
        """Start a release from its code; return it and what stops it."""
        settings: dict[str, object] = {
            "ledger_url": self._ledger_url,
            "encoder": "static",
            "encoder_dir": self._encoder,
            "min_replicas": 1,
            "max_replicas": 1,
        }
        running = ExitStack()
        self.push(running)
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("PYTHONPATH", str(code))
            environment.setenv("BARP_SIGNING_SECRET", "s" * 32)
            service = running.enter_context(service_process(self._folder / release, settings))
        return service, running


@pytest.fixture
def old_code() -> Path:
    """Where the older release's code is."""
    given = os.environ.get(OLD_RELEASE_VARIABLE)
    if not given:
        pytest.skip(f"{OLD_RELEASE_VARIABLE} names no older release")
    return Path(given).resolve(strict=True)


def test_a_rolling_upgrade_and_the_way_back_lose_nothing(
    old_code: Path, postgres_database: str, tmp_path: Path
) -> None:
    """Old alone, both, new alone, both again, old alone: all the time under load."""
    with Releases(tmp_path, postgres_database) as releases:
        old, stop_old = releases.start("old", old_code)
        for name, price in PRICES.items():
            httpx.put(f"{old.url}/v1/models/{name}", json=price, timeout=30).raise_for_status()
        traffic = Traffic(clients=4)
        traffic.take_in("old", old.url)

        def replace(leaving: str, stop: ExitStack, coming: str, code: Path) -> ExitStack:
            service, stop_coming = releases.start(coming, code)
            traffic.take_in(coming, service.url)
            traffic.goes_on(leaving, coming)
            traffic.take_out(leaving)
            stop.close()
            traffic.goes_on(coming)
            return stop_coming

        with traffic:
            traffic.goes_on("old")
            stop_new = replace("old", stop_old, "new", THIS_RELEASE)
            replace("new", stop_new, "old", old_code)
        assert traffic.failures == []
        acknowledged = set(traffic.acknowledged)
        engine = create_engine(postgres_database)

        def ids(table: str) -> Counter[str]:
            with engine.connect() as connection:
                return Counter(connection.scalars(text(f"SELECT decision_id FROM {table}")))

        wait_for(lambda: ids("interactions").keys() >= acknowledged, timeout_s=60)
        assert ids("outcomes").keys() >= acknowledged
        assert set(ids("interactions").values()) == {1}
        assert ids("decisions").total() == traffic.decided.total()
        engine.dispose()
