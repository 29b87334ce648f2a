"""Folders of whole files: a disk and an object store do the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from experiences import a_spec, some_arms

from policies.arms import PriceTable
from policies.encoder import describe_encoder, load_encoder
from policies.encoder_files import (
    ENCODER_FILE,
    has_encoder,
    upload_encoder,
    write_manifest,
)
from policies.errors import ArtifactError
from policies.posterior_learner import PosteriorLearner
from policies.publication import (
    POINTER_FILE,
    Publication,
    forget_versions,
    read_pointer,
    write_pointer,
)
from policies.storage import Folder, open_folder

ARMS = some_arms(0.001, 0.009)
PUBLISHED = Publication(
    revision=5,
    version=2,
    files=PosteriorLearner().initial(a_spec(ARMS)).to_files(),
    prices=PriceTable(version=3, arms=ARMS),
    published_at=1.7e9,
)


@pytest.fixture(params=["path", "file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder of the test's own, in each of the ways to name one."""
    if request.param == "s3":
        return f"{request.getfixturevalue('object_store')}/{tmp_path.name}"
    return f"file://{tmp_path}" if request.param == "file" else str(tmp_path)


@pytest.fixture
def folder(place: str) -> Folder:
    return open_folder(place)


def test_a_file_is_read_back_and_replaced_whole(folder: Folder) -> None:
    folder.write("v1/deep/x.bin", b"first, and longer")
    folder.write("v1/deep/x.bin", b"second")
    assert folder.read("v1/deep/x.bin") == b"second"


def test_a_file_that_is_not_there_is_said_so(folder: Folder) -> None:
    with pytest.raises(FileNotFoundError):
        folder.read("x")
    folder.write("v1/x", b"")
    with pytest.raises(FileNotFoundError):
        folder.read("v1/y")


def test_folders_have_an_age_and_can_be_dropped(folder: Folder) -> None:
    assert folder.ages() == {}
    folder.write("pointer", b"{}")
    for name in ("v1", "v2"):
        folder.write(f"{name}/x", b"x")
    assert folder.ages().keys() == {"v1", "v2"}
    folder.remove("v1")
    assert folder.ages().keys() == {"v2"}
    assert folder.read("pointer") == b"{}"


def test_a_publication_is_read_back(place: str) -> None:
    assert read_pointer(place) is None
    write_pointer(place, PUBLISHED)
    write_pointer(place, replace(PUBLISHED, revision=6, version=3))
    assert read_pointer(place) == replace(PUBLISHED, revision=6, version=3)


def test_a_damaged_pointer_is_refused(place: str) -> None:
    write_pointer(place, PUBLISHED)
    open_folder(place).write(POINTER_FILE, b"[]")
    with pytest.raises(ArtifactError, match=POINTER_FILE):
        read_pointer(place)


def test_a_bucket_that_nobody_made_cannot_be_written(object_store: str) -> None:
    with pytest.raises(OSError, match="that-nobody-made"):
        write_pointer(f"{object_store}-that-nobody-made/published", PUBLISHED)


def test_only_the_newest_versions_stay(place: str) -> None:
    for version in (1, 2, 3):
        write_pointer(place, replace(PUBLISHED, revision=version, version=version))
    # Gone back to: published last, so it is the newest again.
    write_pointer(place, replace(PUBLISHED, revision=4, version=1))
    forget_versions(place, keep=2)
    assert "v1" in open_folder(place).ages()
    assert len(open_folder(place).ages()) == 2
    found = read_pointer(place)
    assert found is not None
    assert found.version == 1


@pytest.fixture
def small_encoder(tmp_path: Path) -> Path:
    """An encoder's folder with a few bytes for a model: enough to be copied and checked."""
    folder = tmp_path / "built"
    folder.mkdir()
    for name in ("model.bin", "tokenizer.json"):
        (folder / name).write_bytes(name.encode())
    write_manifest(folder, "minilm", ("model.bin", "tokenizer.json"), text_dim=8)
    return folder


def test_an_encoder_is_copied_from_the_store_once(
    object_store: str, small_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = f"{object_store}/encoder-{tmp_path.name}"
    assert not has_encoder(url)
    upload_encoder(small_encoder, url)
    assert has_encoder(url)
    assert describe_encoder(url) == describe_encoder(small_encoder)
    # What is here already is not fetched again: only the manifest is left in the store.
    open_folder(url).remove("")
    open_folder(url).write(ENCODER_FILE, (small_encoder / ENCODER_FILE).read_bytes())
    assert describe_encoder(url) == describe_encoder(small_encoder)


@pytest.mark.parametrize(
    "manifest",
    [
        b'{"encoder_id": "../../evil", "files": {"x": ""}}',
        b'{"encoder_id": "e", "files": {"../x": ""}}',
        b'{"encoder_id": ".", "files": {}}',
        b"[]",
        b"",
    ],
)
def test_a_manifest_cannot_lead_out_of_the_cache(
    object_store: str, manifest: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    url = f"{object_store}/evil-{tmp_path.name}"
    open_folder(url).write(ENCODER_FILE, manifest)
    with pytest.raises(ArtifactError, match="encoder cannot be read"):
        load_encoder(url)
    assert not list(tmp_path.iterdir())


def test_a_damaged_copy_is_refused(
    object_store: str, small_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (small_encoder / "model.bin").write_bytes(b"something else")
    url = f"{object_store}/damaged-{tmp_path.name}"
    upload_encoder(small_encoder, url)
    with pytest.raises(ArtifactError, match="do not match"):
        load_encoder(url)
