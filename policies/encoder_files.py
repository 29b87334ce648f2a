"""An encoder's folder: its files, and the manifest that names them by content.

Never rebuilt where it is used: floating point differs between machines, the stored bytes do not.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from policies.artifact import write_atomically
from policies.errors import ArtifactError
from policies.storage import open_folder

EncoderKind = Literal["minilm", "static"]

SCHEMA_VERSION: Final = 1
ENCODER_FILE: Final = "encoder.json"
TOKENIZER_FILE: Final = "tokenizer.json"
KINDS: Final[tuple[EncoderKind, ...]] = get_args(EncoderKind)
ID_PREFIXES: Final = {"minilm": "minilm-l6-v2-onnx-", "static": "minilm-l6-v2-static-"}

# Cut before tokenising, so that the longest prompt costs no more than a long one: 256 tokens of
# English, all that MiniLM sees, are about 1,100 characters.
MAX_CHARACTERS: Final = 8_192

_PLAIN_NAME: Final = re.compile(r"[\w-][\w.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an encoder's folder says of itself.

    Attributes:
        kind: Which sort of encoder.
        encoder_id: Names its files by content.
        dim: Length of a context.
    """

    kind: EncoderKind
    encoder_id: str
    dim: int


def write_manifest(folder: Path, kind: EncoderKind, names: Sequence[str], *, dim: int) -> Manifest:
    """Describe the files of a folder once they are all there."""
    digests = {name: _file_digest(folder / name) for name in names}
    manifest = Manifest(kind=kind, encoder_id=_encoder_id(kind, digests), dim=dim)
    stated = {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "encoder_id": manifest.encoder_id,
        "dim": dim,
        "files": digests,
    }
    write_atomically(folder / ENCODER_FILE, json.dumps(stated, sort_keys=True).encode())
    return manifest


def checked_manifest(folder: Path) -> Manifest:
    """Read encoder.json and compare every digest; raises ArtifactError."""
    try:
        stated = json.loads((folder / ENCODER_FILE).read_bytes())
        # Encoders exported before there were two kinds do not name theirs.
        kind = stated.get("kind", "minilm")
        known = stated["schema_version"] == SCHEMA_VERSION and kind in KINDS
        digests = {name: _file_digest(folder / name) for name in stated["files"]}
        manifest = Manifest(kind=kind, encoder_id=stated["encoder_id"], dim=int(stated["dim"]))
        expected = (stated["files"], manifest.encoder_id)
        matches = known and expected == (digests, _encoder_id(kind, digests))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"encoder cannot be read: {error!r}", field=ENCODER_FILE) from error
    if not matches:
        raise ArtifactError(
            f"encoder files do not match {ENCODER_FILE}: build the encoder again",
            field=ENCODER_FILE,
            allowed="files as they were built",
        )
    return manifest


def local_encoder(place: str | Path) -> Path:
    """Return an encoder's folder on this machine, copied here once from an object store.

    Copies are kept by encoder id in the user's cache, XDG_CACHE_HOME or ~/.cache. They are not
    trusted for that: whoever loads one compares every digest.

    Args:
        place: A path, or an s3:// URL that `upload_encoder` filled.

    Raises:
        ArtifactError: The store is away, or holds no encoder.
    """
    folder = open_folder(place)
    if folder.local is not None:
        return folder.local
    try:
        manifest = folder.read(ENCODER_FILE)
        stated = json.loads(manifest)
        names = [str(stated["encoder_id"]), *map(str, stated["files"])]
        if not all(map(_PLAIN_NAME.fullmatch, names)):
            raise ValueError("a name in it is no plain file name")
        target = _cache() / names[0]
        if not (target / ENCODER_FILE).is_file():
            target.mkdir(parents=True, exist_ok=True)
            for name in names[1:]:
                write_atomically(target / name, folder.read(name))
            # Last, so that it vouches for the others.
            write_atomically(target / ENCODER_FILE, manifest)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"encoder cannot be read: {error!r}", field=ENCODER_FILE) from error
    return target


def upload_encoder(folder: Path, place: str) -> None:
    """Copy a built encoder to an object store; raises OSError."""
    store = open_folder(place)
    for path in sorted(folder.iterdir(), key=lambda path: path.name == ENCODER_FILE):
        store.write(path.name, path.read_bytes())


def has_encoder(place: str | Path) -> bool:
    """Tell whether a path or URL holds an encoder; raises OSError for a store that is away."""
    try:
        open_folder(place).read(ENCODER_FILE)
    except FileNotFoundError:
        return False
    return True


def _cache() -> Path:
    """Where copies of encoders are kept."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "barp-router" / "encoders"


def _encoder_id(kind: EncoderKind, digests: dict[str, str]) -> str:
    """Name an encoder by the content of its files."""
    joined = "".join(f"{name}:{digests[name]};" for name in sorted(digests))
    return ID_PREFIXES[kind] + hashlib.sha256(joined.encode()).hexdigest()[:12]


def _file_digest(path: Path) -> str:
    """Return a file's SHA-256 as hexadecimal, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
