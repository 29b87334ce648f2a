"""The file of tenants: what it changes, and what is said where it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from cluster.settings import Settings
from cluster.tenants import InvalidTenants, rulebook
from pipelines.tenants import TenantRules


def test_a_tenant_differs_only_in_what_it_sets(tmp_path: Path) -> None:
    file = tmp_path / "tenants.toml"
    file.write_text(
        '[tenants.acme]\nwait_window_s = 60\n[tenants."b c"]\ndefault_outcome = 0.25\n'
        'quality_signals = "mean"\n[tenants.plain]\n[tenants.dropping]\ndefault_outcome = "drop"\n'
    )
    book = rulebook(Settings(tenants_file=file, wait_window_s=600, default_outcome="0.5"))
    default = TenantRules(wait_window_s=600, default_quality=0.5)
    assert book.of("nobody") == book.of("plain") == default
    assert book.of("acme") == TenantRules(wait_window_s=60, default_quality=0.5)
    assert book.of("b c") == TenantRules(
        wait_window_s=600, default_quality=0.25, quality_signals="mean"
    )
    assert book.of("dropping") == TenantRules(wait_window_s=600)


def test_without_a_file_all_are_alike() -> None:
    assert rulebook(Settings()).of("x") == TenantRules(wait_window_s=86_400)


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ("[tenants.acme]\nwait_window_s = 0", "tenants.acme.wait_window_s"),
        ("[tenants.acme]\nwait_window_s = inf", "tenants.acme.wait_window_s"),
        ("[tenants.acme]\ndefault_outcome = 1.5", "tenants.acme.default_outcome"),
        ("[tenants.acme]\ndefault_outcome = 'keep'", "tenants.acme.default_outcome"),
        ("[tenants.acme]\nquality_signals = 'max'", "tenants.acme.quality_signals"),
        ("[tenants.acme]\nwait_windows_s = 5", "tenants.acme.wait_windows_s"),
        ("[tenant.acme]\nwait_window_s = 5", "tenant"),
        ("[tenants.acme", "tenants_file"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, content: str, field: str) -> None:
    file = tmp_path / "tenants.toml"
    file.write_text(content)
    with pytest.raises(InvalidTenants) as caught:
        rulebook(Settings(tenants_file=file))
    assert caught.value.field is not None
    assert caught.value.field.startswith(field)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidTenants, match="cannot be read"):
        rulebook(Settings(tenants_file=tmp_path / "none.toml"))


@pytest.mark.parametrize("value", ["keep", "1.5", "nan", "-0.1", ""])
def test_a_default_outcome_is_drop_or_a_quality(value: str) -> None:
    with pytest.raises(ValidationError):
        Settings(default_outcome=value)
