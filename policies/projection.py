"""Principal components of contexts: what the network, the bandits and reward models see."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def fit_projection(contexts: NDArray[np.float32], *, components: int) -> tuple[Array, Array]:
    """Fit principal components of unit variance; return (centre, projection).

    Args:
        contexts: Shape (n, context_dim), n >= 2.
        components: How many rows the projection has; those the contexts do not span are zero.
    """
    exact = contexts.astype(np.float64)
    centre = exact.mean(axis=0)
    _, sizes, directions = np.linalg.svd(exact - centre, full_matrices=False)
    # A direction's sign is arbitrary: fix it, so that equal contexts give equal bytes.
    largest = np.abs(directions).argmax(axis=1)
    directions = directions * np.sign(directions[np.arange(len(sizes)), largest])[:, None]
    deviation = sizes / np.sqrt(len(exact) - 1)
    real = deviation > 1e-9 * deviation.max(initial=1.0)
    kept = (directions[real] / deviation[real, None])[:components]
    return centre, np.pad(kept, ((0, components - len(kept)), (0, 0)))


def features(contexts: NDArray[np.float32], centre: Array, projection: Array) -> Array:
    """Project contexts and put a leading 1: shape (n, components + 1)."""
    projected = (contexts - centre) @ projection.T
    return np.hstack([np.ones((len(contexts), 1)), projected])
