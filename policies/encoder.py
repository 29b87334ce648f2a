"""Prompts to contexts: a frozen encoder, read from a folder of bytes that names itself.

Two kinds: MiniLM itself, and the static encoder distilled from it, a table of token vectors. Behind
what either makes of a text stands the prompt's form. A policy names the encoder it was trained on;
contexts of another mean something else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from policies.encoder_files import (
    MAX_CHARACTERS,
    EncoderKind,
    checked_manifest,
    local_encoder,
)
from policies.minilm import export_minilm, load_minilm
from policies.prompt_form import FORM_DIM, FORM_WEIGHT, prompt_forms
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
        """Encode texts, float32, shape (len(texts), dim).

        A row is the text's vector, of length one, and the prompt's form, unless the encoder is
        from before there was one.
        """


class FormedEncoder:
    """An encoder whose contexts end with the form of the prompt."""

    def __init__(self, text_encoder: Encoder) -> None:
        """Take the encoder of the text itself, which names the form in its id."""
        self._text_encoder, self._text_dim = text_encoder, text_encoder.dim
        self.encoder_id, self.light = text_encoder.encoder_id, text_encoder.light
        self.dim = self._text_dim + FORM_DIM

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode texts, float32, shape (len(texts), dim)."""
        rows = np.empty((len(texts), self.dim), dtype=np.float32)
        rows[:, : self._text_dim] = self._text_encoder.encode(texts)
        forms = prompt_forms([text[:MAX_CHARACTERS] for text in texts])
        rows[:, self._text_dim :] = FORM_WEIGHT * forms
        return rows


def load_encoder(place: str | Path) -> Encoder:
    """Read an encoder of whichever kind, digests checked, ready to run on one thread.

    Args:
        place: Its folder, or an s3:// URL; from there it is copied to this machine once.

    Raises:
        ArtifactError: A file is missing, damaged, or not the one that was built.
    """
    folder = local_encoder(place)
    manifest = checked_manifest(folder)
    load = load_static if manifest.kind == "static" else load_minilm
    text_encoder: Encoder = load(folder, manifest)
    return FormedEncoder(text_encoder) if manifest.form else text_encoder


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
