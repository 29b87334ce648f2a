"""The form of a prompt: bounded whatever the text, blind to case, different where tasks are."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from policies.prompt_form import FORM_DIM, prompt_form, prompt_forms

CHOICE = "Which gas do plants take in?\nA. oxygen\nB. carbon dioxide\nC. helium\nD. neon"
CODE = "def add(a, b):\n    return a + b"
STORY = "Once upon a time there was a king. He had three sons."


@given(st.text(max_size=2_000))
def test_every_text_has_a_finite_bounded_form(text: str) -> None:
    form = np.array(prompt_form(text))
    assert form.shape == (FORM_DIM,)
    assert (np.abs(form) <= 3.0).all()


@given(st.text(alphabet=st.characters(codec="ascii"), max_size=200))
def test_case_does_not_count(text: str) -> None:
    assert prompt_form(text) == prompt_form(text.upper()) == prompt_form(text.lower())


def test_forms_of_several_prompts_are_those_of_each() -> None:
    texts = (CHOICE, CODE, STORY, "")
    forms = prompt_forms(texts)
    assert forms.dtype == np.float32
    np.testing.assert_array_equal(
        forms, np.array([prompt_form(text) for text in texts], dtype=np.float32)
    )
    assert prompt_forms([]).shape == (0, FORM_DIM)


def test_a_choice_is_nearer_to_a_choice_than_to_code_or_a_story() -> None:
    other = "What do bees make?\nA. milk\nB. honey\nC. silk\nD. wax"
    choice, another, code, story = prompt_forms([CHOICE, other, CODE, STORY])
    near = np.linalg.norm(choice - another)
    assert near < 0.5 * np.linalg.norm(choice - code)
    assert near < 0.5 * np.linalg.norm(choice - story)


def test_a_lone_surrogate_has_a_form() -> None:
    assert np.isfinite(prompt_form("a\ud800b")).all()
