"""A replay's way to the service: its public HTTP API, tried again where a caller would."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote

import httpx

from pipelines.outcomes import OutcomeTable, arms_with_prices
from policies.arms import Arm
from policies.errors import Unavailable

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 2.0


class ReplayClient:
    """Calls one service."""

    def __init__(self, http: httpx.AsyncClient, *, clock: Callable[[], float]) -> None:
        self._http, self._clock = http, clock

    async def call(
        self, method: str, path: str, body: Any = None, *, retry_s: float = 0.0
    ) -> httpx.Response:
        """Send one request; 503 and what cannot be reached is tried again for `retry_s` seconds.

        Raises:
            httpx.TransportError: Not reached until then.
        """
        deadline, pause_s = self._clock() + retry_s, FIRST_PAUSE_S
        while True:
            is_last = self._clock() + pause_s > deadline
            try:
                answer = await self._http.request(method, path, json=body)
                if is_last or answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                    return answer
            except httpx.TransportError:
                if is_last:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Send one request that must succeed; return the decoded JSON.

        Raises:
            Unavailable: The service cannot be reached, or says no.
        """
        try:
            answer = await self.call(method, path, body)
        except httpx.TransportError as error:
            raise Unavailable(f"{method} {path}: {error!r}", field="url") from error
        if answer.is_error:
            raise Unavailable(f"{method} {path}: {refusal(answer)}", field=path)
        return answer.json()

    async def register_models(self, table: OutcomeTable, *, timeout_s: float) -> list[str] | None:
        """Offer every model of the table at its mean recorded cost, and wait until it counts.

        Returns:
            The allow-list that requests need: None where the service offers no other model,
            else the table's names, since nothing is recorded of the others.

        Raises:
            Unavailable: The service says no, or no replica has the prices after `timeout_s` s.
        """
        listed = (await self.ask("GET", "/v1/models"))["models"]
        usd_per_call = {model["name"]: model["usd_per_call"] for model in listed}
        price_version = 0
        for arm in arms_with_prices(table):
            if usd_per_call.get(arm.name) != arm.usd_per_call:
                prices = _prices(arm)
                answer = await self.ask("PUT", f"/v1/models/{quote(arm.name)}", prices)
                price_version = answer["price_version"]
        await self._wait_for_prices(price_version, timeout_s=timeout_s)
        return list(table.arms) if usd_per_call.keys() - set(table.arms) else None

    async def pending(self) -> int:
        """Count the outcomes in the ledger that wait for their decision; raises Unavailable."""
        return int((await self.ask("GET", "/v1/status"))["ledger"]["pending"])

    async def _wait_for_prices(self, version: int, *, timeout_s: float) -> None:
        """Ask a replica until it holds the price table; raises Unavailable."""
        deadline = self._clock() + timeout_s
        while (await self.ask("GET", "/readyz"))["price_version"] < version:
            if self._clock() > deadline:
                raise Unavailable(f"price table {version} has reached no replica", field="models")
            await asyncio.sleep(FIRST_PAUSE_S)


def refusal(answer: httpx.Response) -> str:
    """Name a refusal by status and error code, never by what was sent.

    >>> refusal(httpx.Response(422, json={"error": {"code": "no_eligible_arm"}}))
    '422 no_eligible_arm'
    """
    try:
        return f"{answer.status_code} {answer.json()['error']['code']}"
    except (ValueError, KeyError, TypeError):
        return f"{answer.status_code} {answer.reason_phrase}"


def _prices(arm: Arm) -> dict[str, float | int]:
    """Write an arm's prices as the API takes them."""
    return {
        "input_usd_per_mtok": arm.input_usd_per_mtok,
        "output_usd_per_mtok": arm.output_usd_per_mtok,
        "usd_per_call": arm.usd_per_call,
        "typical_output_tokens": arm.typical_output_tokens,
    }
