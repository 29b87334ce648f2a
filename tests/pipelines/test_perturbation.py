"""Prompts written differently: the same each time, and still the same prompt."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipelines.perturbation import PERTURBATIONS, reworded, with_typos

PROMPT = "Which function returns the biggest number in the following list of integers?"


@given(st.text())
def test_the_same_prompt_is_written_the_same_way_each_time(prompt: str) -> None:
    for changed in PERTURBATIONS.values():
        assert changed(prompt) == changed(prompt)


@given(st.text())
def test_a_typo_moves_letters_and_loses_none(prompt: str) -> None:
    changed = with_typos(prompt)
    assert sorted(changed) == sorted(prompt)
    assert [len(word) for word in changed.split()] == [len(word) for word in prompt.split()]


def test_few_words_get_a_typo_but_one_does() -> None:
    pairs = zip(with_typos(PROMPT).split(), PROMPT.split(), strict=True)
    assert sum(after != before for after, before in pairs) == 1


def test_rewording_takes_whole_words_and_keeps_the_first_letter() -> None:
    changed = reworded(PROMPT)
    assert "What routine gives back the biggest number in the below list" in changed
