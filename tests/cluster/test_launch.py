"""What a launch refuses before it starts anything."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from encoders import small_static_encoder

from cluster.launch import (
    LaunchError,
    ensure_encoder,
    refuse_open_address,
    state_lock,
    usable_port,
)
from cluster.settings import Settings
from services.keys import ApiKey, DamagedKeys, digest_of, new_key, write_keys


def test_open_address_needs_a_key() -> None:
    with pytest.raises(LaunchError, match="BARP_API_KEY"):
        refuse_open_address(Settings(host="0.0.0.0"))
    refuse_open_address(Settings(host="127.0.0.1"))


def test_a_key_file_with_a_key_opens_other_addresses(tmp_path: Path) -> None:
    settings = Settings(host="0.0.0.0", state_dir=tmp_path)
    key = ApiKey(name="a", sha256=digest_of(new_key()), scopes=frozenset({"route"}))
    write_keys(tmp_path / "keys.json", [])
    with pytest.raises(LaunchError, match="barp keys create"):
        refuse_open_address(settings)
    write_keys(tmp_path / "keys.json", [key])
    refuse_open_address(settings)


def test_a_damaged_key_file_is_refused_also_on_loopback(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("{")
    with pytest.raises(DamagedKeys, match="restore it"):
        refuse_open_address(Settings(state_dir=tmp_path))


def test_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LaunchError, match=f"port={port}") as refused:
            usable_port("127.0.0.1", port)
    assert refused.value.field == "port"


def test_port_zero_takes_a_free_one() -> None:
    assert usable_port("127.0.0.1", 0) > 0


def test_state_folder_serves_one_service_at_a_time(tmp_path: Path) -> None:
    with state_lock(tmp_path), pytest.raises(LaunchError, match="in use"), state_lock(tmp_path):
        pass
    with state_lock(tmp_path):
        pass


def test_an_encoder_that_is_there_is_not_built_again(tmp_path: Path) -> None:
    folder = small_static_encoder(tmp_path / "encoder")
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    ensure_encoder(folder, kind="static")
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def test_a_state_folder_with_another_encoder_is_refused(tmp_path: Path) -> None:
    folder = small_static_encoder(tmp_path / "encoder")
    with pytest.raises(LaunchError, match="encoder=minilm") as refused:
        ensure_encoder(folder, kind="minilm")
    assert refused.value.allowed == "static, or another state_dir"
