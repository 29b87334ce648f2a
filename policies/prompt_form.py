"""What a prompt looks like, apart from what it says: length, lines, digits, signs, how it ends.

A table of numbers, a multiple choice, a line of code and a story differ in form before they differ
in meaning, and token vectors that are averaged see little of it. The form tells tasks apart, which
models are good at, and the length is what a call costs. Case does not count: it is the caller's
habit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

# Part of the encoder's id: contexts of another form mean something else.
FORM_VERSION: Final = 1
FORM_DIM: Final = 13
# What a number of the form weighs beside a text vector of length one.
FORM_WEIGHT: Final = 0.5

# Signs that go together, as bytes of UTF-8: blanks, digits, punctuation, mathematics, code.
SIGNS: Final = (b" \t\n\r", b"0123456789", b".,;:!'\"-?", b"$\\^=+*/<>%|~", b"{}[]()_`#@&")
# A line that begins with a letter or a digit and a dot, a bracket or a colon: a choice, or a step.
LISTED: Final = re.compile(r"\n\s*\(?[A-Ha-h1-9][).:]")

TYPICAL_BYTES: Final = 250
TYPICAL_WORD_BYTES: Final = 5.7


def prompt_forms(texts: Sequence[str]) -> NDArray[np.float32]:
    """Describe the form of prompts, float32, shape (len(texts), FORM_DIM), some -1 to 3 each.

    Args:
        texts: The prompts, cut to the length that an encoder reads.
    """
    rows = np.empty((len(texts), FORM_DIM), dtype=np.float32)
    for row, text in zip(rows, texts, strict=True):
        row[:] = prompt_form(text)
    return rows


def prompt_form(text: str) -> tuple[float, ...]:
    """Describe one prompt: size, shares of signs by their root, then what it asks and how it ends.

    >>> [round(value, 1) for value in prompt_form("What is 2 + 2?")]
    [-1.2, 0.0, -0.9, 0.7, 0.5, 0.5, 0.0, 0.0, 0.5, 0.7, 0.0, 0.0, 0.0]
    """
    encoded = text.encode(errors="replace")
    length = len(encoded)
    blanks, *shares = (length - len(encoded.translate(None, signs)) for signs in SIGNS)
    size = length + 1.0
    end = text.rstrip()[-1:]
    return (
        math.log10(size / TYPICAL_BYTES),
        math.log10(text.count("\n") + 1.0),
        (min(max(size / (blanks + 1.0), 2.0), 12.0) - TYPICAL_WORD_BYTES) / 3.0,
        *(2.0 * math.sqrt(share / size) for share in shares),
        min(2.0 * math.sqrt((length - len(text)) / size), 1.0),
        min(text.count("?"), 3) / 2.0,
        0.7 * (end == "?"),
        0.7 * (end in {".", "!"}),
        0.7 * (end == ":"),
        min(len(LISTED.findall(text)), 4) / 3.0,
    )
