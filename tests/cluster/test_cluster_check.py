"""`barp cluster check` refuses what would split a service over several nodes in silence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from object_stores import seeing_puts, without_conditions
from typer.testing import CliRunner

from cluster.cli import app
from cluster.cluster_check import NodeReport, Probe, check_cluster, report_of_this_node
from cluster.doctor import Check
from cluster.settings import Settings


def refused(checks: list[Check]) -> dict[str, str]:
    """What is not as it must be, and what is needed, by name."""
    return {check.name: check.needed for check in checks if not check.ok}


@pytest.fixture
def alone(tmp_path: Path, encoder_dir: Path) -> Settings:
    """The defaults, as one machine has them."""
    return Settings(state_dir=tmp_path, encoder_dir=str(encoder_dir))


@pytest.fixture
def shared(tmp_path: Path, encoder_dir: Path, postgres_server: str, object_store: str) -> Settings:
    """Everything where several nodes need it."""
    return Settings(
        state_dir=tmp_path,
        encoder_dir=str(encoder_dir),
        ledger_url=postgres_server,
        registry_url=postgres_server,
        storage_url=f"{object_store}/{tmp_path.name}",
        signing_secret="s" * 32,
        api_key="k" * 32,
    )


def test_one_node_needs_nothing_shared(alone: Settings) -> None:
    assert refused(check_cluster(alone, nodes=1)) == {}


def test_two_nodes_with_the_defaults_are_told_every_setting(alone: Settings) -> None:
    found = refused(check_cluster(alone, nodes=2))
    said = {
        "ledger": "BARP_LEDGER_URL",
        "registry": "BARP_REGISTRY_URL",
        "signing secret": "BARP_SIGNING_SECRET",
        "API key": "BARP_API_KEY",
        "storage": "BARP_STORAGE_URL",
        "dataset": "BARP_DATASET_DIR",
    }
    assert found.keys() == said.keys()
    for name, setting in said.items():
        assert setting in found[name]


def test_two_nodes_with_shared_state_are_allowed(shared: Settings) -> None:
    assert refused(check_cluster(shared, nodes=2)) == {}
    assert not list(shared.state_dir.iterdir()), "the check leaves nothing behind"


def test_no_password_is_shown(shared: Settings) -> None:
    url = "postgresql+psycopg://barp:very-secret@127.0.0.1:1/barp"
    settings = shared.model_copy(update={"ledger_url": url, "registry_url": url})
    checks = check_cluster(settings, nodes=2)
    assert {"ledger", "registry"} <= refused(checks).keys()
    assert "very-secret" not in str(checks)


def test_a_database_that_forgets_is_refused(shared: Settings, postgres_server: str) -> None:
    forgets = f"{postgres_server}&options=-csynchronous_commit%3Doff"
    checks = check_cluster(shared.model_copy(update={"ledger_url": forgets}), nodes=1)
    assert refused(checks) == {"ledger": "fsync and synchronous_commit on"}


def test_a_bucket_that_is_not_there_is_refused(shared: Settings) -> None:
    settings = shared.model_copy(update={"storage_url": "s3://nobody-made-this"})
    assert refused(check_cluster(settings, nodes=2)).keys() == {"artifacts", "dataset", "storage"}


def nodes_that_read(*places: Path | str) -> Probe:
    """A probe of one node for each place: what it finds where it looks for storage."""

    def probe(storage: str, encoder: str) -> Sequence[NodeReport]:
        return [
            report_of_this_node(f"node-{number}", str(place), encoder)
            for number, place in enumerate(places)
        ]

    return probe


def test_a_folder_that_all_nodes_mount_is_allowed(shared: Settings, tmp_path: Path) -> None:
    settings = shared.model_copy(update={"storage_url": str(tmp_path)})
    published = tmp_path / "published"
    probe = nodes_that_read(published, published)
    checks = check_cluster(settings, nodes=2, probe=probe)
    assert refused(checks) == {}
    assert [check.name for check in checks if check.look] == ["dataset"]
    elsewhere = settings.model_copy(update={"dataset_dir": f"{tmp_path}-of-one-node"})
    assert refused(check_cluster(elsewhere, nodes=2, probe=probe)).keys() == {"dataset"}


def test_a_store_that_knows_no_conditions_is_refused(shared: Settings) -> None:
    with seeing_puts(without_conditions):
        checks = check_cluster(shared, nodes=2)
    assert refused(checks).keys() == {"dataset"}
    assert "overwrites" in next(check.found for check in checks if check.name == "dataset")


def test_a_folder_of_one_node_is_refused_by_name(shared: Settings, tmp_path: Path) -> None:
    settings = shared.model_copy(update={"storage_url": str(tmp_path / "here")})
    probe = nodes_that_read(tmp_path / "here" / "published", tmp_path / "there" / "published")
    checks = check_cluster(settings, nodes=2, probe=probe)
    assert "BARP_STORAGE_URL" in refused(checks)["storage"]
    assert "node-1" in next(check.found for check in checks if check.name == "storage")


def test_another_encoder_on_one_node_is_refused(
    shared: Settings, tmp_path: Path, encoder_dir: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(encoder_dir, damaged)
    (damaged / "tokenizer.json").write_text("{}")

    def probe(storage: str, encoder: str) -> Sequence[NodeReport]:
        return [
            report_of_this_node("a", storage, encoder),
            report_of_this_node("b", storage, str(damaged)),
        ]

    checks = check_cluster(shared, nodes=2, probe=probe)
    assert refused(checks).keys() == {"encoder", "nodes answer"}
    assert "b:" in next(check.found for check in checks if check.name == "nodes answer")


def test_the_command_says_so_and_exits_with_1(
    tmp_path: Path, encoder_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--nodes", "3", "--encoder-dir", str(encoder_dir), "--json"]
    result = CliRunner().invoke(app, ["cluster", "check", *flags])
    assert result.exit_code == 1
    said = json.loads(result.stdout.splitlines()[-1])
    assert said["ok"] is False
    assert {check["name"] for check in said["checks"] if not check["ok"]} >= {"ledger", "storage"}
