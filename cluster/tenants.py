"""The file of tenants: for each its feedback contract, where it differs from the settings.

[tenants.acme]
wait_window_s = 3600
default_outcome = 0.0
quality_signals = "mean"
"""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.settings import Settings
from pipelines.tenants import Rulebook, Signals, TenantRules
from policies.errors import RouterError

Outcome = Literal["drop"] | Annotated[float, Field(ge=0, le=1)]


class InvalidTenants(RouterError, ValueError):
    """A file of tenants that cannot be read, or that holds what is not allowed."""

    code = "invalid_tenants"


class _Tenant(BaseModel):
    """What a tenant may set for itself; what it leaves out is as in the settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    wait_window_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    default_outcome: Outcome | None = None
    quality_signals: Signals | None = None

    def over(self, default: TenantRules) -> TenantRules:
        """Return the rules of this tenant."""
        changes: dict[str, Any] = {
            name: value
            for name in ("wait_window_s", "quality_signals")
            if (value := getattr(self, name)) is not None
        }
        if self.default_outcome is not None:
            changes["default_quality"] = default_quality(self.default_outcome)
        return replace(default, **changes)


class _TenantsFile(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tenants: dict[Annotated[str, Field(min_length=1, max_length=200)], _Tenant] = Field(
        default_factory=dict
    )


def rulebook(settings: Settings) -> Rulebook:
    """Put settings and the file they name together.

    Raises:
        InvalidTenants: The file cannot be read, is not TOML, or holds what is not allowed.
    """
    default = TenantRules(
        wait_window_s=settings.wait_window_s,
        default_quality=default_quality(settings.default_outcome),
        quality_signals=settings.quality_signals,
    )
    if settings.tenants_file is None:
        return Rulebook(default=default)
    read = _read(settings.tenants_file)
    return Rulebook(
        default=default, tenants={name: own.over(default) for name, own in read.tenants.items()}
    )


def default_quality(outcome: str | float) -> float | None:
    """Return the quality that `default_outcome` stands for; None for `drop`."""
    return None if outcome == "drop" else float(outcome)


def _read(path: Path) -> _TenantsFile:
    """Read and check the file; raises InvalidTenants."""
    try:
        return _TenantsFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidTenants(
            f"tenants_file={path} cannot be read: {error}",
            field="tenants_file",
            value=str(path),
            allowed="a TOML file",
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidTenants(
            f"{path}: {field}={str(first['input'])[:100]}: {first['msg']}",
            field=field,
            value=str(first["input"])[:100],
            allowed=first["msg"],
        ) from error
