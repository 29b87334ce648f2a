"""An encoder's folder: its files, and the manifest that names them by content.

Never rebuilt where it is used: floating point differs between machines, the stored bytes do not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from policies.artifact import write_atomically
from policies.errors import ArtifactError

EncoderKind = Literal["minilm", "static"]

SCHEMA_VERSION: Final = 1
ENCODER_FILE: Final = "encoder.json"
TOKENIZER_FILE: Final = "tokenizer.json"
KINDS: Final[tuple[EncoderKind, ...]] = get_args(EncoderKind)
ID_PREFIXES: Final = {"minilm": "minilm-l6-v2-onnx-", "static": "minilm-l6-v2-static-"}

# Cut before tokenising, so that the longest prompt costs no more than a long one: 256 tokens of
# English, all that MiniLM sees, are about 1,100 characters.
MAX_CHARACTERS: Final = 8_192


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


def _encoder_id(kind: EncoderKind, digests: dict[str, str]) -> str:
    """Name an encoder by the content of its files."""
    joined = "".join(f"{name}:{digests[name]};" for name in sorted(digests))
    return ID_PREFIXES[kind] + hashlib.sha256(joined.encode()).hexdigest()[:12]


def _file_digest(path: Path) -> str:
    """Return a file's SHA-256 as hexadecimal, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
