"""BaRP's network over prompt and preference: softmax(head([h(x); phi(w)])).

After *Learning to Route LLMs from Bandit Feedback* (arXiv 2510.07429). `log_probs` is the only
place where a probability is computed: serving reads it through numpy, training through torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from policies.artifact import Weights

Head = Literal["linear", "bilinear", "mlp"]

PREFERENCE: Final = ("phi1_weight", "phi1_bias", "phi2_weight", "phi2_bias")
# Arrays with one row an arm: they grow with the pool.
ARM_ROWS: Final = ("head_weight", "head_bias", "interaction_weight")
PARAMETERS: Final[Mapping[str, tuple[str, ...]]] = {
    "linear": (*PREFERENCE, "head_weight", "head_bias"),
    "bilinear": (*PREFERENCE, "head_weight", "head_bias", "interaction_weight"),
    "mlp": (*PREFERENCE, "hidden_weight", "hidden_bias", "head_weight", "head_bias"),
}
# Drawn at the start; all others are zero, so that a first version is the uniform policy.
DRAWN: Final = ("phi1_weight", "phi2_weight", "hidden_weight")
HIDDEN_UNITS: Final = 64
# Keeps the logarithm finite where a probability underflows and nothing explores.
TINY: Final = 1e-30


def log_probs(
    weights: Mapping[str, Any],
    context: Any,
    preference: Any,
    offered: Any,
    *,
    exploration_total: float,
    xp: ModuleType,
) -> Any:
    """Return the log-probability of every arm, exploration included.

    Written with what numpy and torch have in common, so that the pmf sampled from, the
    propensity logged and the loss cannot disagree.

    Args:
        weights: The arrays named in PARAMETERS of one head.
        context: What the network sees of the prompts, shape (..., inputs).
        preference: Rows (w_quality, w_cost), shape (..., 2).
        offered: Which arms may be chosen, bool, shape (..., K), at least one a row.
        exploration_total: Probability shared evenly over the arms offered.
        xp: The array module, `numpy` or `torch`.

    Returns:
        Shape (..., K), -inf for arms not offered.
    """
    hidden = xp.tanh(preference @ weights["phi1_weight"].T + weights["phi1_bias"])
    phi = xp.tanh(hidden @ weights["phi2_weight"].T + weights["phi2_bias"])
    logits = xp.where(offered, head(weights, context, phi, xp=xp), -xp.inf)
    unnormalised = xp.exp(logits - xp.amax(logits, axis=-1, keepdims=True))
    probs = unnormalised / unnormalised.sum(axis=-1, keepdims=True)
    even = offered * xp.ones_like(probs)
    even = even / even.sum(axis=-1, keepdims=True)
    mixed = (1.0 - exploration_total) * probs + exploration_total * even
    # The logarithm's argument is set apart before it is taken: log 0 would poison the gradient.
    return xp.where(offered, xp.log(xp.where(mixed > TINY, mixed, TINY)), -xp.inf)


def head(weights: Mapping[str, Any], context: Any, phi: Any, *, xp: ModuleType) -> Any:
    """Map h(x) and phi(w) to one logit an arm, shape (..., K); the weights at hand name the head.

    Linear adds what prompt and preference say; bilinear lets them interact, h(x)^T U_a phi(w);
    the MLP puts a hidden layer between. BaRP compared the three and found the linear one close.
    """
    joint = xp.concatenate([context, phi], axis=-1)
    if "hidden_weight" in weights:
        joint = xp.tanh(joint @ weights["hidden_weight"].T + weights["hidden_bias"])
    logits = joint @ weights["head_weight"].T + weights["head_bias"]
    if "interaction_weight" in weights:
        interaction = weights["interaction_weight"]
        logits = logits + xp.einsum("...c,kcu,...u->...k", context, interaction, phi)
    return logits


def initial_parameters(
    head: Head, *, num_arms: int, inputs: int, units: int, seed: int
) -> dict[str, NDArray[np.float32]]:
    """Start from the uniform policy: hidden layers random, what makes logits zero.

    Args:
        head: Which decision head.
        num_arms: K.
        inputs: Numbers of a prompt that the network sees.
        units: Width of phi.
        seed: Of the hidden layers, drawn with deviation one over the root of their inputs.
    """
    generator = np.random.default_rng(seed)
    shapes = {
        "phi1_weight": (units, 2),
        "phi1_bias": (units,),
        "phi2_weight": (units, units),
        "phi2_bias": (units,),
        "hidden_weight": (HIDDEN_UNITS, inputs + units),
        "hidden_bias": (HIDDEN_UNITS,),
        "head_weight": (num_arms, HIDDEN_UNITS if head == "mlp" else inputs + units),
        "head_bias": (num_arms,),
        "interaction_weight": (num_arms, inputs, units),
    }
    parameters = {name: np.zeros(shapes[name], dtype=np.float32) for name in PARAMETERS[head]}
    for name in DRAWN:
        if name in parameters:
            drawn = generator.normal(size=shapes[name]) / np.sqrt(shapes[name][-1])
            parameters[name] = drawn.astype(np.float32)
    return parameters


def with_arm_rows(weights: Weights, missing: int) -> dict[str, NDArray[Any]]:
    """Append arms to a network and its optimiser, each with the logit an unknown arm is served at.

    That is the mean over the arms it knows: neither favoured nor starved.
    """
    grown: dict[str, NDArray[Any]] = dict(weights)
    for name in ARM_ROWS:
        if name not in weights:
            continue
        grown[name] = with_mean_rows(weights[name], missing)
        for moment in ("adam_mean", "adam_square"):
            value = weights[f"{moment}.{name}"]
            zeros = np.zeros_like(value, shape=(missing, *value.shape[1:]))
            grown[f"{moment}.{name}"] = np.concatenate([value, zeros])
    return grown


def with_mean_rows(rows: NDArray[Any], missing: int) -> NDArray[Any]:
    """Append the mean row `missing` times; zero where there is no row yet."""
    mean = rows.mean(axis=0) if len(rows) else np.zeros(rows.shape[1:])
    return np.concatenate([rows, np.broadcast_to(mean, (missing, *rows.shape[1:]))]).astype(
        rows.dtype
    )
