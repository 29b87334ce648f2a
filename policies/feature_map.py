"""What the posterior learner sees of a prompt: principal components, and a kernel upon them.

Fitted on contexts alone, no outcome is used. The components say in which broad direction a prompt
lies, the kernel in which neighbourhood: tasks are neighbourhoods, and a linear model of a kernel
can tell them apart. All in their true relative variance, not whitened: what varies little says
little. Each of the two blocks has mean squared length 1 over the prompts it was fitted on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Array = NDArray[np.float64]

LLOYD_ROUNDS: Final = 8
# Eigenvalues of the kernel below this are noise, and dividing by their root would blow it up.
SMALLEST_EIGENVALUE: Final = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureMap:
    """A frozen map from contexts to p = 1 + components + kernel components features.

    Attributes:
        centre: Mean context, shape (context_dim,).
        projection: Principal components, shape (components, context_dim).
        landmarks: Points that carry the kernel, shape (m, components).
        width: Kernel width, a squared distance, shape (1,).
        kernel_map: From kernel values to components, shape (m, kernel_components).
        kernel_mean: Mean of the latter, shape (kernel_components,).
    """

    centre: Array
    projection: Array
    landmarks: Array
    width: Array
    kernel_map: Array
    kernel_mean: Array

    @property
    def blocks(self) -> tuple[slice, slice]:
        """Where components and kernel stand among the features; in front is a 1."""
        end = 1 + len(self.projection)
        return slice(1, end), slice(end, end + self.kernel_map.shape[1])

    @property
    def num_features(self) -> int:
        """How many features there are, p."""
        return int(1 + len(self.projection) + self.kernel_map.shape[1])

    def __call__(self, contexts: NDArray[Any]) -> Array:
        """Map contexts, shape (n, context_dim), to features, shape (n, p)."""
        components = (contexts - self.centre) @ self.projection.T
        kernel = np.exp(squared_distances(components, self.landmarks) / -self.width)
        ones = np.ones((len(components), 1))
        return np.concatenate([ones, components, kernel @ self.kernel_map - self.kernel_mean], 1)

    @classmethod
    def blank(
        cls, *, context_dim: int, components: int, landmarks: int, kernel_components: int
    ) -> FeatureMap:
        """See nothing of a prompt: every feature but the leading 1 is 0."""
        return cls(
            centre=np.zeros(context_dim),
            projection=np.zeros((components, context_dim)),
            landmarks=np.zeros((landmarks, components)),
            width=np.ones(1),
            kernel_map=np.zeros((landmarks, kernel_components)),
            kernel_mean=np.zeros(kernel_components),
        )

    @classmethod
    def read(cls, weights: Mapping[str, NDArray[Any]]) -> FeatureMap:
        """Take it out of an artifact."""
        return cls(**{field.name: weights[f"features.{field.name}"] for field in fields(cls)})

    def weights(self) -> dict[str, NDArray[Any]]:
        """Name it for an artifact."""
        return {f"features.{field.name}": getattr(self, field.name) for field in fields(self)}


def fit_features(
    contexts: NDArray[Any], *, components: int, landmarks: int, kernel_components: int, seed: int
) -> FeatureMap:
    """Fit the map; fewer contexts than asked for make fewer components and landmarks.

    Principal components, k-means upon them, then the Nystrom method (Williams, Seeger 2000) with
    the means as landmarks of a Gaussian kernel, and principal components of what it gives.

    Args:
        contexts: Shape (n, context_dim), n >= 4.
        components: Principal components, at most n - 1.
        landmarks: k-means centres, at most n / 2.
        kernel_components: Components of the kernel kept, at most as many as landmarks.
        seed: Of k-means.
    """
    exact = contexts.astype(np.float64)
    centre = exact.mean(axis=0)
    values, vectors = np.linalg.eigh((exact - centre).T @ (exact - centre) / len(exact))
    top = np.argsort(values)[::-1][: min(components, len(exact) - 1)]
    scale = np.sqrt(max(values[top].sum(), SMALLEST_EIGENVALUE))
    projection = _with_fixed_signs(vectors[:, top].T) / scale
    points = (exact - centre) @ projection.T
    means = k_means(points, min(landmarks, len(points) // 2), np.random.default_rng(seed))
    distances = squared_distances(points, means)
    width = max(float(np.median(distances)), SMALLEST_EIGENVALUE)
    values, vectors = np.linalg.eigh(np.exp(squared_distances(means, means) / -width))
    root = vectors / np.sqrt(np.maximum(values, SMALLEST_EIGENVALUE))
    kernel = np.exp(distances / -width) @ root
    centred = kernel - kernel.mean(axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    leading = _with_fixed_signs(vectors[:, ::-1][:, :kernel_components].T).T
    mapped = kernel @ leading
    spread = ((mapped - mapped.mean(axis=0)) ** 2).sum(axis=1).mean()
    size = np.sqrt(max(float(spread), SMALLEST_EIGENVALUE))
    return FeatureMap(
        centre=centre,
        projection=projection,
        landmarks=means,
        width=np.array([width]),
        kernel_map=root @ leading / size,
        kernel_mean=mapped.mean(axis=0) / size,
    )


def k_means(points: Array, num: int, rng: Generator) -> Array:
    """Find `num` centres by k-means++ and a few of Lloyd's rounds, shape (num, dim)."""
    found = [points[rng.integers(len(points))]]
    nearest = ((points - found[0]) ** 2).sum(axis=1)
    for _ in range(num - 1):
        total = nearest.sum()
        chances = nearest / total if total > 0 else None
        found.append(points[rng.choice(len(points), p=chances)])
        nearest = np.minimum(nearest, ((points - found[-1]) ** 2).sum(axis=1))
    centres = np.array(found)
    for _ in range(LLOYD_ROUNDS):
        label = squared_distances(points, centres).argmin(axis=1)
        for number in np.unique(label):
            centres[number] = points[label == number].mean(axis=0)
    return centres


def squared_distances(points: Array, others: Array) -> Array:
    """Return the squared distance of each point to each other one, shape (n, m)."""
    lengths = (points**2).sum(axis=1)[:, None] + (others**2).sum(axis=1)
    return np.asarray(np.maximum(lengths - 2.0 * points @ others.T, 0.0))


def _with_fixed_signs(directions: Array) -> Array:
    """Turn each row so that its largest entry is positive: equal data then give equal bytes."""
    largest = np.abs(directions).argmax(axis=1)
    return np.asarray(
        directions * np.sign(directions[np.arange(len(directions)), largest])[:, None]
    )
