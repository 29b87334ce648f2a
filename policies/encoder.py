"""Prompts to contexts: a frozen encoder, read from a folder of bytes that names itself.

Two kinds: MiniLM itself, and the static encoder distilled from it, a table of token vectors. A
policy names the encoder it was trained on; contexts of another mean something else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from policies.encoder_files import EncoderKind, checked_manifest, local_encoder
from policies.minilm import export_minilm, load_minilm
from policies.static_encoder import distill_static, load_static

BUILDERS: Final[Mapping[EncoderKind, Callable[[Path], str]]] = {
    "minilm": export_minilm,
    "static": distill_static,
}


class Encoder(Protocol):
    """What every kind of encoder does.

    A text's row does not depend on what it is encoded beside, up to rounding (1e-6).
    """

    @property
    def encoder_id(self) -> str:
        """Names its files by content."""

    @property
    def dim(self) -> int:
        """Length of a context."""

    @property
    def light(self) -> bool:
        """Whether to encode a prompt takes less time than to hand it to a thread."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode texts as rows of length one, float32, shape (len(texts), dim)."""


def load_encoder(place: str | Path) -> Encoder:
    """Read an encoder of whichever kind, digests checked, ready to run on one thread.

    Args:
        place: Its folder, or an s3:// URL; from there it is copied to this machine once.

    Raises:
        ArtifactError: A file is missing, damaged, or not the one that was built.
    """
    folder = local_encoder(place)
    manifest = checked_manifest(folder)
    if manifest.kind == "static":
        return load_static(folder, manifest)
    return load_minilm(folder, manifest)


def describe_encoder(place: str | Path) -> tuple[str, int]:
    """Return encoder id and context length of an encoder, digests checked.

    Raises:
        ArtifactError: A file is missing, damaged, or not the one that was built.
    """
    manifest = checked_manifest(local_encoder(place))
    return manifest.encoder_id, manifest.dim


def build_encoder(kind: EncoderKind, folder: Path) -> str:
    """Make an encoder and write its folder; return the encoder id.

    Needs torch and sentence-transformers, up to a minute and 1 GB; what it writes needs neither.
    """
    return BUILDERS[kind](folder)
