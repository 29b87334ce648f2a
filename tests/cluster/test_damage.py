"""A start on damaged files: it goes on, or says in one message which file it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import ray
from encoders import small_static_encoder

from cluster.actors import NAMES, NAMESPACE, start_actors, stop_actors
from cluster.places import resolved
from cluster.settings import Settings
from policies.errors import RouterError

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def settings_of(state_dir: Path) -> Settings:
    """A service that nothing asks for much."""
    return resolved(
        Settings(
            state_dir=state_dir,
            encoder="static",
            encoder_dir=str(state_dir / "encoder"),
            learners="posterior",
        )
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Path:
    """The state folder of a service that has run and stopped."""
    state_dir = tmp_path_factory.mktemp("whole")
    small_static_encoder(state_dir / "encoder")
    start_actors(settings_of(state_dir))
    stop_actors()
    return state_dir


@pytest.fixture
def state_dir(whole: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it to be damaged."""
    # MLflow keeps absolute paths: the copy takes the place of what it was copied from.
    kept = tmp_path / "kept"
    shutil.copytree(whole, kept)
    yield whole
    for name in NAMES:
        with suppress(ValueError):
            ray.kill(ray.get_actor(name, namespace=NAMESPACE))
    shutil.rmtree(whole)
    shutil.copytree(kept, whole)


def garbage(path: Path) -> None:
    path.write_bytes(b"this is no such file " * 500)


def truncated(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)


def found(state_dir: Path, pattern: str) -> list[Path]:
    """Files by pattern, at least one."""
    files = [path for path in state_dir.glob(pattern) if path.is_file()]
    assert files, (pattern, sorted(str(p.relative_to(state_dir)) for p in state_dir.rglob("*")))
    return files


# What has to be there for a start, and what can be made again or done without.
NEEDED = [
    ("ledger.db", garbage, "ledger"),
    ("mlflow.db", garbage, "registry"),
    ("encoder/encoder.json", truncated, "encoder"),
    ("encoder/model.safetensors", flipped, "encoder files do not match"),
]
MADE_AGAIN = [
    ("published/*.json", garbage),
    ("published/*.json", truncated),
    ("published/**/policy.safetensors", flipped),
    ("published/**/policy.safetensors", truncated),
]


@pytest.mark.parametrize(("pattern", "damage", "named"), NEEDED)
def test_what_is_needed_is_refused_by_name(
    state_dir: Path, pattern: str, damage: Callable[[Path], None], named: str
) -> None:
    for path in found(state_dir, pattern):
        damage(path)
    with pytest.raises(RouterError) as refused:
        start_actors(settings_of(state_dir))
    assert named in str(refused.value)


@pytest.mark.parametrize(("pattern", "damage"), MADE_AGAIN)
def test_what_can_be_made_again_is(
    state_dir: Path, pattern: str, damage: Callable[[Path], None]
) -> None:
    for path in found(state_dir, pattern):
        damage(path)
    start_actors(settings_of(state_dir))
    publisher: Any = ray.get_actor("publisher", namespace=NAMESPACE)
    status: dict[str, Any] = ray.get(publisher.status.remote(), timeout=60)
    assert status["version"] is not None


def test_a_damaged_version_is_not_served_and_the_service_starts(state_dir: Path) -> None:
    for path in found(state_dir, "artifacts/**/policy.safetensors"):
        flipped(path)
    start_actors(settings_of(state_dir))
