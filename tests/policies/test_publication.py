"""The pointer on disk: what was published last, whole or refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from experiences import a_spec, some_arms

from policies.arms import PriceTable
from policies.artifact import WEIGHTS_FILE
from policies.errors import ArtifactError, InvalidRequest
from policies.posterior_learner import PosteriorLearner
from policies.publication import POINTER_FILE, Canary, Publication, read_pointer, write_pointer

ARMS = some_arms(0.001, 0.009)
ARTIFACT = PosteriorLearner().initial(a_spec(ARMS))
PUBLISHED = Publication(
    revision=5,
    version=2,
    files=ARTIFACT.to_files(),
    prices=PriceTable(version=3, arms=ARMS),
    published_at=1.7e9,
)


def test_the_last_publication_is_read_back(tmp_path: Path) -> None:
    write_pointer(tmp_path, PUBLISHED)
    write_pointer(tmp_path, replace(PUBLISHED, revision=6, version=3))
    found = read_pointer(tmp_path)
    assert found == replace(PUBLISHED, revision=6, version=3)
    assert found.artifact().to_files() == PUBLISHED.files


def test_before_anything_was_published_there_is_nothing(tmp_path: Path) -> None:
    assert read_pointer(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"{}", b'{"revision": 1}', b"[]"])
def test_a_damaged_pointer_is_refused(tmp_path: Path, content: bytes) -> None:
    write_pointer(tmp_path, PUBLISHED)
    (tmp_path / POINTER_FILE).write_bytes(content)
    with pytest.raises(ArtifactError):
        read_pointer(tmp_path)


def test_a_pointer_to_files_that_are_gone_is_refused(tmp_path: Path) -> None:
    write_pointer(tmp_path, PUBLISHED)
    (tmp_path / "v2" / WEIGHTS_FILE).unlink()
    with pytest.raises(ArtifactError):
        read_pointer(tmp_path)


def test_a_canary_is_read_back_with_its_files(tmp_path: Path) -> None:
    other = PosteriorLearner().initial(a_spec(ARMS, seed=1))
    canary = Canary(version=7, files=other.to_files(), share=0.2)
    write_pointer(tmp_path, replace(PUBLISHED, canary=canary))
    found = read_pointer(tmp_path)
    assert found is not None
    assert found.canary == canary
    assert found.canary.artifact().to_files() == other.to_files()


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_that_is_no_trial_is_refused(share: float) -> None:
    with pytest.raises(InvalidRequest, match="share"):
        Canary(version=7, files={}, share=share)


def test_a_pointer_of_a_release_before_canaries_is_read(tmp_path: Path) -> None:
    write_pointer(tmp_path, PUBLISHED)
    pointer = json.loads((tmp_path / POINTER_FILE).read_bytes())
    assert pointer["folder"] == "v2", "what that release looks for"
    del pointer["canary"]
    (tmp_path / POINTER_FILE).write_text(json.dumps(pointer))
    assert read_pointer(tmp_path) == PUBLISHED
