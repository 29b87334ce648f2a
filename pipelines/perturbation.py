"""Prompts written a little differently, the same each time: does a router's choice hold?

The rewording is a fixed table and a polite frame, no language model's paraphrase: it changes words
and length but never what is asked.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

# One word in so many gets a typo.
WORDS_A_TYPO: Final = 12
# What a person would as soon have written; whole words, case kept for the first letter.
REWORDED: Final[Mapping[str, str]] = {
    "what is": "what's",
    "how many": "what number of",
    "which": "what",
    "write": "create",
    "find": "determine",
    "calculate": "work out",
    "explain": "describe",
    "answer": "reply",
    "question": "query",
    "following": "below",
    "correct": "right",
    "choose": "pick",
    "complete": "finish",
    "function": "routine",
    "returns": "gives back",
    "because": "since",
    "also": "too",
    "big": "large",
    "people": "persons",
    "begin": "start",
    "does not": "doesn't",
    "do not": "don't",
    "is not": "isn't",
}
PATTERN: Final = re.compile(rf"\b({'|'.join(REWORDED)})\b", re.IGNORECASE)
FRAME: Final = "Could you help me with this, please? {} Thank you!"


def with_typos(prompt: str) -> str:
    """Swap two neighbouring letters inside some words, chosen by the prompt itself.

    >>> with_typos("Hello world, this is a prompt")
    'Hello world, this is a prmopt'
    """
    words = re.split(r"(\s+)", prompt)
    long = [place for place, word in enumerate(words) if len(word) > 3 and word.isalpha()]
    if not long:
        return prompt
    digest = hashlib.sha256(prompt.encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    number = max(1, len(long) // WORDS_A_TYPO)
    for place in rng.choice(long, size=number, replace=False):
        word = words[place]
        at = int(rng.integers(1, len(word) - 2)) if len(word) > 4 else 1
        words[place] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return "".join(words)


def reworded(prompt: str) -> str:
    """Put other words for common ones, and a polite frame around.

    >>> reworded("What is the answer?")
    "Could you help me with this, please? What's the reply? Thank you!"
    """
    return FRAME.format(PATTERN.sub(_other_words, prompt))


def _other_words(found: re.Match[str]) -> str:
    """Return the replacement with the first letter's case kept."""
    words = found.group(0)
    other = REWORDED[words.lower()]
    return other[0].upper() + other[1:] if words[0].isupper() else other


PERTURBATIONS: Final[Mapping[str, Callable[[str], str]]] = {
    "typos": with_typos,
    "lower": str.lower,
    "upper": str.upper,
    "reworded": reworded,
}
