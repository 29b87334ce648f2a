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
from policies.prompt_form import FORM_DIM, FORM_VERSION
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
        encoder_id: Names its files by content, and the form it adds.
        text_dim: Length of what the files make of a text.
        form: Version of the prompt's form that is put behind it, 0 for none, as in encoders from
            before there was one.
    """

    kind: EncoderKind
    encoder_id: str
    text_dim: int
    form: int

    @property
    def dim(self) -> int:
        """Length of a context."""
        return self.text_dim + (FORM_DIM if self.form else 0)


def write_manifest(
    folder: Path,
    kind: EncoderKind,
    names: Sequence[str],
    *,
    text_dim: int,
    form: int = FORM_VERSION,
) -> Manifest:
    """Describe the files of a folder once they are all there."""
    digests = {name: _file_digest(folder / name) for name in names}
    encoder_id = _encoder_id(kind, digests, form)
    manifest = Manifest(kind=kind, encoder_id=encoder_id, text_dim=text_dim, form=form)
    stated = {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "encoder_id": encoder_id,
        "dim": text_dim,
        "form": form,
        "files": digests,
    }
    write_atomically(folder / ENCODER_FILE, json.dumps(stated, sort_keys=True).encode())
    return manifest


def checked_manifest(folder: Path) -> Manifest:
    """Read encoder.json and compare every digest; raises ArtifactError."""
    try:
        stated = json.loads((folder / ENCODER_FILE).read_bytes())
        # Encoders exported before there were two kinds do not name theirs.
        kind, form = stated.get("kind", "minilm"), int(stated.get("form", 0))
        known = stated["schema_version"] == SCHEMA_VERSION and kind in KINDS
        known = known and form in (0, FORM_VERSION)
        digests = {name: _file_digest(folder / name) for name in stated["files"]}
        encoder_id, text_dim = stated["encoder_id"], int(stated["dim"])
        manifest = Manifest(kind=kind, encoder_id=encoder_id, text_dim=text_dim, form=form)
        expected = (stated["files"], encoder_id)
        matches = known and expected == (digests, _encoder_id(kind, digests, form))
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


def _encoder_id(kind: EncoderKind, digests: dict[str, str], form: int) -> str:
    """Name an encoder by the content of its files, and by the form it adds."""
    joined = "".join(f"{name}:{digests[name]};" for name in sorted(digests))
    if form:
        joined += f"form:{form};"
    return ID_PREFIXES[kind] + hashlib.sha256(joined.encode()).hexdigest()[:12]


def _file_digest(path: Path) -> str:
    """Return a file's SHA-256 as hexadecimal, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
