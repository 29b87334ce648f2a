"""The command line finds the service of its state folder, and believes no leftover."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cluster.client import DEFAULT_URL, SERVICE_FILE, ServiceClient, ServiceError, reach
from services.keys import service_key


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BARP_STATE_DIR", str(tmp_path))
    return tmp_path


def test_a_running_service_is_found(state_dir: Path) -> None:
    left = {"url": "http://127.0.0.1:1234", "pid": os.getpid()}
    (state_dir / SERVICE_FILE).write_text(json.dumps(left))
    assert reach(None, None) == ("http://127.0.0.1:1234", None)
    assert reach(None, "mine") == ("http://127.0.0.1:1234", "mine")


def test_the_owner_of_the_state_folder_needs_no_key_and_gives_it_to_nobody_else(
    state_dir: Path,
) -> None:
    (state_dir / SERVICE_FILE).write_text(
        json.dumps({"url": "http://127.0.0.1:1234", "pid": os.getpid()})
    )
    (state_dir / "secret.key").write_bytes(bytes(32))
    assert reach(None, None) == ("http://127.0.0.1:1234", service_key(bytes(32)))
    assert reach("http://127.0.0.1:1234", None) == ("http://127.0.0.1:1234", None)
    (state_dir / SERVICE_FILE).unlink()
    assert reach(None, None) == (DEFAULT_URL, None)


@pytest.mark.parametrize(
    "left", ["", "[]", "{}", '{"url": "http://127.0.0.1:1234", "pid": 999999999}', None]
)
def test_what_a_killed_service_left_is_not_believed(state_dir: Path, left: str | None) -> None:
    if left is not None:
        (state_dir / SERVICE_FILE).write_text(left)
    assert reach(None, None) == (DEFAULT_URL, None)


def test_an_address_that_is_given_wins(state_dir: Path) -> None:
    with (
        ServiceClient("http://127.0.0.1:9") as client,
        pytest.raises(ServiceError, match=r"http://127\.0\.0\.1:9"),
    ):
        client.get("/v1/status")
