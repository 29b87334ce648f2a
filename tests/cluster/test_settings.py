"""Settings: flags before environment before file, every one documented, bad ones named."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError
from typer.testing import CliRunner

from cluster.cli import app
from cluster.options import InvalidSetting, load_settings
from cluster.places import places, resolved
from cluster.settings import Settings
from cluster.signing import DamagedSecret, signing_secret


def test_flag_beats_environment_beats_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "barp.toml").write_text("port = 1111\nmax_batch = 11\nmin_replicas = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BARP_PORT", "2222")
    monkeypatch.setenv("BARP_MAX_BATCH", "22")

    settings = load_settings(port=3333)

    assert (settings.port, settings.max_batch, settings.min_replicas) == (3333, 22, 3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 70_000),
        ("default_quality_weight", 1.5),
        ("cost_ceiling_usd", 0.0),
        ("encoder_placement", "moon"),
        ("record_when_full", "lose"),
        ("exploration_total", 1.0),
        ("holdout_share", -0.1),
        ("learners", "posterior,oracle"),
        ("learners", "barp,posterior,barp"),
        ("learners", ""),
    ],
)
def test_bad_setting_is_named_with_its_value(name: str, value: object) -> None:
    with pytest.raises(InvalidSetting) as refused:
        load_settings(**{name: value})
    assert refused.value.field == name
    assert str(value) in str(refused.value)


def test_unknown_key_in_the_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "barp.toml").write_text("prot = 1111\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidSetting, match="prot"):
        load_settings()


def test_every_setting_is_documented_and_is_a_flag_of_serve() -> None:
    result = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0, result.output
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert f"--{name.replace('_', '-')}" in result.output


def test_settings_command_hides_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BARP_API_KEY", "very-secret-key")
    result = CliRunner().invoke(app, ["settings"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "very-secret-key" not in result.output


def test_places_are_absolute_and_survive_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = resolved(Settings(state_dir=Path("here")))
    monkeypatch.chdir("/")
    assert places(settings).publish_dir == f"{tmp_path}/here/published"
    assert places(settings).ledger_url == f"sqlite:///{tmp_path}/here/ledger.db"


def test_shared_storage_takes_what_every_node_needs(tmp_path: Path) -> None:
    url = "s3://bucket/prefix/"
    settings = resolved(Settings(state_dir=tmp_path, storage_url=url, encoder_dir="/opt/encoder"))
    place = places(settings)
    assert place.publish_dir == "s3://bucket/prefix/published"
    assert place.artifact_dir == "s3://bucket/prefix/artifacts"
    assert place.dataset_dir == "s3://bucket/prefix/interactions"
    assert place.encoder_dir == "/opt/encoder"
    assert place.secret_file == tmp_path / "secret.key"
    assert places(settings.model_copy(update={"encoder_dir": None})).encoder_dir == (
        "s3://bucket/prefix/encoder"
    )


@pytest.mark.parametrize("field", ["storage_url", "dataset_dir", "artifact_dir", "encoder_dir"])
@pytest.mark.parametrize(
    "value", ["gs://bucket", "s3://", "s3://b/p?region=x", "s3://b/[x]", "s3a://b"]
)
def test_a_place_that_nothing_can_read_is_refused(field: str, value: str) -> None:
    with pytest.raises(InvalidSetting, match="s3://bucket/prefix") as refused:
        load_settings(**{field: value})
    assert (refused.value.field, refused.value.value) == (field, value)


def test_signing_secret_is_made_once_and_private(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    first = signing_secret(settings)
    assert len(first) == 32
    assert signing_secret(settings) == first
    mode = stat.S_IMODE(places(settings).secret_file.stat().st_mode)
    assert mode == 0o600


@pytest.mark.parametrize("content", [b"", b"short", bytes(15)])
def test_a_secret_that_was_cut_off_is_refused_and_not_replaced(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "secret.key").write_bytes(content)
    with pytest.raises(DamagedSecret, match=r"secret\.key holds \d+ bytes"):
        signing_secret(Settings(state_dir=tmp_path))
    assert (tmp_path / "secret.key").read_bytes() == content
    with pytest.raises(DamagedSecret, match="signing_secret holds"):
        signing_secret(Settings(state_dir=tmp_path, signing_secret=SecretStr("short")))


def test_several_aggregators_need_postgresql() -> None:
    with pytest.raises(ValidationError, match="must be 1 on SQLite"):
        Settings(aggregator_shards=2)
    url = "postgresql+psycopg://barp@db/barp"
    assert Settings(aggregator_shards=2, ledger_url=url).aggregator_shards == 2
    with pytest.raises(ValidationError, match="less than or equal to 16"):
        Settings(aggregator_shards=17, ledger_url=url)
