"""Contexts are encoded once, and found again only for the same texts and the same encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.embeddings import CHUNK, cached_contexts, texts_digest


class CountingEncoder:
    """Encodes a text as its length, and counts the texts."""

    dim = 2

    def __init__(self, encoder_id: str = "e") -> None:
        self.encoder_id, self.encoded = encoder_id, 0

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return (length, 1) a text."""
        self.encoded += len(texts)
        return np.array([[len(text), 1] for text in texts], dtype=np.float32)


def test_a_second_run_encodes_nothing(tmp_path: Path) -> None:
    encoder, texts = CountingEncoder(), ["a", "bb", "ccc"]
    first = cached_contexts(texts, encoder, tmp_path)
    second = cached_contexts(texts, encoder, tmp_path)
    np.testing.assert_array_equal(first, [[1, 1], [2, 1], [3, 1]])
    np.testing.assert_array_equal(second, first)
    assert encoder.encoded == 3


def test_other_texts_order_or_encoder_are_encoded_anew(tmp_path: Path) -> None:
    encoder, other = CountingEncoder(), CountingEncoder("other")
    cached_contexts(["a", "bb"], encoder, tmp_path)
    reordered = cached_contexts(["bb", "a"], encoder, tmp_path)
    cached_contexts(["a", "bb"], other, tmp_path)
    np.testing.assert_array_equal(reordered, [[2, 1], [1, 1]])
    assert (encoder.encoded, other.encoded) == (4, 2)


def test_the_digest_knows_where_a_text_ends() -> None:
    assert texts_digest(["ab", "c"]) != texts_digest(["a", "bc"])


def test_progress_is_told_chunk_by_chunk(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    texts = ["x"] * (CHUNK + 1)
    cached_contexts(
        texts, CountingEncoder(), tmp_path, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(CHUNK, CHUNK + 1), (CHUNK + 1, CHUNK + 1)]
