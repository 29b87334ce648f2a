"""A benchmark's changed settings: read as what the setting is, refused by name."""

from __future__ import annotations

from typing import cast

import pytest

from pipelines.learner_settings import learner_named
from policies.errors import InvalidRequest
from policies.learners import BarpDrLearner, BarpLearner, PosteriorLearner


def test_values_are_read_as_what_the_setting_is() -> None:
    changes = ("barp-dr.control_variate=false", "barp-dr.preferences_per_row=1", "barp.head=mlp")
    found = cast("BarpDrLearner", learner_named("barp-dr", changes)).settings
    assert found.control_variate is False
    assert found.preferences_per_row == 1
    assert cast("BarpLearner", learner_named("barp", changes)).settings.head == "mlp"


def test_changes_for_other_learners_are_left_alone() -> None:
    assert learner_named("posterior", ("barp.head=mlp",)) == PosteriorLearner()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("barp.head", "set=barp.head must be learner.setting=value"),
        ("magic.head=mlp", "set=magic.head=mlp must be"),
        ("barp.magic=1", "set=barp.magic must be one of"),
        ("barp.head=round", "set=barp.head=round does not fit"),
        ("barp.learning_rate=fast", "set=barp.learning_rate=fast does not fit"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        learner_named("barp", (change,))
