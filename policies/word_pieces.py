"""BERT's tokens of plain English, a few times faster than the general tokenizer.

A text of printable ASCII falls into words and single signs without any Unicode rule, and the same
words come again and again: their tokens are remembered. Where a text holds anything else, it is cut
at its blanks, and only the parts that are not plain go to the tokenizer, to be remembered as well.
"""

from __future__ import annotations

import re
from itertools import chain
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# All of printable ASCII and white space but `[`, with which the names of special tokens begin.
_PLAIN: Final = re.compile(r"[\t\n\r -Z\\-~]*")
# As BERT's pre-tokenizer cuts it: runs of letters and digits; any other sign stands alone.
_WORDS: Final = re.compile(r"[a-z0-9]+|[^\sa-z0-9]")
# Blanks by every rule: no token spans one. Other control characters vanish, or are blanks to some.
_PARTS: Final = re.compile(r"[^ \t\n\r]+")
WORDS_KEPT: Final = 65_536
# Characters of a word that is remembered: longer ones are no words, and would fill the memory.
LONGEST_KEPT: Final = 64


class WordPieces:
    """A tokenizer with BERT's rules, lower case, and a memory for words.

    Args:
        tokenizer: The general one, without padding or truncation; whatever is asked here, the
            answer is its own.
        words_kept: How many words are remembered; then it begins anew.
    """

    def __init__(self, tokenizer: Tokenizer, *, words_kept: int = WORDS_KEPT) -> None:
        self._pieces = _Memory(tokenizer, words_kept)

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a text, special tokens not added."""
        if _PLAIN.fullmatch(text) is not None:
            return self._plain(text)
        ids = list[int]()
        for part in _PARTS.findall(text):
            ids += self._plain(part) if _PLAIN.fullmatch(part) else self._pieces[part]
        return ids

    def _plain(self, text: str) -> list[int]:
        # No step of Python's own a word: a prompt has tens of them.
        words = _WORDS.findall(text.lower())
        return list(chain.from_iterable(map(self._pieces.__getitem__, words)))


class _Memory(dict[str, list[int]]):
    """The token ids of words; one that is missing is asked for, and kept."""

    def __init__(self, tokenizer: Tokenizer, words_kept: int) -> None:
        super().__init__()
        self._tokenizer, self._words_kept = tokenizer, words_kept

    def __missing__(self, word: str) -> list[int]:
        """Ask the tokenizer."""
        ids = list(self._tokenizer.encode(word, add_special_tokens=False).ids)
        if len(word) <= LONGEST_KEPT:
            if len(self) >= self._words_kept:
                # Full once in a long time; what is common is back after a few prompts.
                self.clear()
            self[word] = ids
        return ids
