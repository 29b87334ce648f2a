"""What would be decided, without deciding: no model is drawn, and nothing is recorded."""

from __future__ import annotations

from typing import Annotated, NotRequired

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import TypedDict

from policies.policy import mix_canary
from policies.preference import Preference
from services.champion import Champion
from services.decider import Offer
from services.wire import ExpectedOut, PreferenceOut

Array = NDArray[np.float64]


class ProspectOut(TypedDict):
    """How one model stands."""

    model: str
    probability: Annotated[float, Field(description="With which it would be drawn now.")]
    list_cost_usd: Annotated[float, Field(description="A call with this prompt at list price.")]
    expected: NotRequired[
        Annotated[ExpectedOut, Field(description="Left out by policies that model no outcome.")]
    ]


class PreviewOut(TypedDict):
    """What a request would come to."""

    policy_version: int
    canary_version: Annotated[
        int | None, Field(description="On trial beside it: the probabilities are of both.")
    ]
    preference: PreferenceOut
    models: Annotated[list[ProspectOut], Field(description="The likeliest first.")]
    not_offered: Annotated[
        list[str], Field(description="What `models` and `max_cost_usd` leave out.")
    ]


def preview(
    champion: Champion,
    offer: Offer,
    preference: Preference,
    context: NDArray[np.float32],
    *,
    prompt_characters: int,
) -> PreviewOut:
    """Ask the champion, and the canary where there is one, what they would do.

    Args:
        champion: Who decides now; the expectations shown are its own.
        offer: The arms the request may go to.
        preference: Its trade-off.
        context: Its encoded prompt, float32, shape (context_dim,).
        prompt_characters: Length of the prompt.
    """
    assessed = champion.policy.assess(context[None], [preference], offer.arms)
    pmf, canary = assessed.pmf[0], champion.canary
    if canary is not None:
        on_trial = canary.policy.assess(context[None], [preference], offer.arms)
        pmf = mix_canary(pmf, on_trial.pmf[0], share=canary.share)
    models = []
    for index, arm in enumerate(offer.arms):
        shown = ProspectOut(
            model=arm.name,
            probability=float(pmf[index]),
            list_cost_usd=arm.list_cost_usd(prompt_characters),
        )
        if assessed.quality is not None and assessed.cost_usd is not None:
            quality, cost_usd = assessed.quality[0, index], assessed.cost_usd[0, index]
            shown["expected"] = {"quality": float(quality), "cost_usd": float(cost_usd)}
        models.append(shown)
    return PreviewOut(
        policy_version=champion.version,
        canary_version=None if canary is None else canary.version,
        preference={"quality": preference.quality, "cost": preference.cost},
        models=sorted(models, key=lambda one: -one["probability"]),
        not_offered=[name for name in champion.prices.names if name not in offer.names],
    )
