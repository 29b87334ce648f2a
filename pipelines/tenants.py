"""What each tenant's feedback is held to: how long it may take, and how it is put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Signals = Literal["latest", "mean", "earliest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantRules:
    """The feedback contract of one tenant.

    Attributes:
        wait_window_s: How long an outcome may take after its decision, seconds.
        default_quality: Quality of a decision whose quality nobody has reported by the end, in
            [0, 1]; None makes nothing up: then what is known is learned from, and nothing where
            nothing is.
        quality_signals: Which of several reports of quality counts; of costs, tokens and
            latencies it is always the latest, for one call has only one of each.
    """

    wait_window_s: float
    default_quality: float | None = None
    quality_signals: Signals = "latest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rulebook:
    """The rules of every tenant.

    Attributes:
        default: For tenants that have none of their own.
        tenants: Those that have, by name.
    """

    default: TenantRules
    tenants: Mapping[str, TenantRules] = field(default_factory=dict)

    @property
    def longest_window_s(self) -> float:
        """The longest wait window of any tenant, seconds."""
        return max(rules.wait_window_s for rules in (self.default, *self.tenants.values()))

    def of(self, tenant: str) -> TenantRules:
        """Return a tenant's rules."""
        return self.tenants.get(tenant, self.default)
