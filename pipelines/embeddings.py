"""Contexts of recorded prompts, encoded once and kept on disk by what went into them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from policies.artifact import write_atomically

# Few enough that progress is seen to move, enough that texts of like length share a run.
CHUNK: Final = 256

Contexts = NDArray[np.float32]


class Encoder(Protocol):
    """What `policies.encoder.load_encoder` gives."""

    @property
    def encoder_id(self) -> str:
        """Names the exact weights."""

    @property
    def dim(self) -> int:
        """Length of a context."""

    def encode(self, texts: Sequence[str]) -> Contexts:
        """Encode prompts, float32, shape (len(texts), dim)."""


def cached_contexts(
    texts: Sequence[str],
    encoder: Encoder,
    folder: Path,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Contexts:
    """Encode texts, or read what an earlier run encoded, float32, shape (len(texts), dim).

    Args:
        texts: The prompts.
        encoder: Named by its id in the file's name, so that another encoder is another file.
        folder: Where the files are; made where it is missing.
        progress: Told how many of how many texts are encoded.
    """
    path = folder / f"{encoder.encoder_id}-{texts_digest(texts)[:16]}.npy"
    if path.is_file():
        return np.asarray(np.load(path, allow_pickle=False), dtype=np.float32)
    rows = np.empty((len(texts), encoder.dim), dtype=np.float32)
    for start in range(0, len(texts), CHUNK):
        rows[start : start + CHUNK] = encoder.encode(texts[start : start + CHUNK])
        progress(min(start + CHUNK, len(texts)), len(texts))
    folder.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.save(content, rows, allow_pickle=False)
    write_atomically(path, content.getvalue())
    return rows


def texts_digest(texts: Sequence[str]) -> str:
    """Name texts, in this order, by content: a SHA-256 as hexadecimal."""
    whole = hashlib.sha256()
    for text in texts:
        whole.update(hashlib.sha256(text.encode()).digest())
    return whole.hexdigest()
