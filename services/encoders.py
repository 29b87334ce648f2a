"""Encoding without holding up the event loop: in a thread of the replica, or a deployment away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

Contexts = NDArray[np.float32]

# Prompts that a light encoder encodes at once: some 2 ms, what other requests may have to wait.
LIGHT_PROMPTS: Final = 32
# Prompts of different callers that a heavy one encodes together: from 8 on MiniLM gains no more.
HEAVY_PROMPTS: Final = 8


class LocalEncoder(Protocol):
    """What `policies.encoder.load_encoder` gives."""

    @property
    def light(self) -> bool:
        """Whether to encode a prompt takes less time than to hand it to a thread."""

    @property
    def encoder_id(self) -> str:
        """Names the exact weights."""

    @property
    def dim(self) -> int:
        """Length of a context."""

    def encode(self, texts: Sequence[str]) -> Contexts:
        """Encode prompts, float32, shape (len(texts), dim)."""


class Encoder(Protocol):
    """What the router awaits."""

    @property
    def encoder_id(self) -> str:
        """Names the exact weights."""

    @property
    def dim(self) -> int:
        """Length of a context."""

    @property
    def gathered(self) -> int:
        """How many callers' prompts are best encoded in one call; 1 where each goes by itself."""

    async def encode(self, texts: Sequence[str]) -> Contexts:
        """Encode prompts, float32, shape (len(texts), dim)."""


class ThreadedEncoder:
    """Encodes in one thread of this process, or at once where that takes less than a hand-over.

    MiniLM encoded at once held the event loop and gave 245 requests/s where a thread gave 402; a
    second thread on shared cores made things slower.
    """

    def __init__(self, encoder: LocalEncoder) -> None:
        self.encoder_id, self.dim = encoder.encoder_id, encoder.dim
        self._encoder = encoder
        self._at_once = LIGHT_PROMPTS if encoder.light else 0
        self.gathered = LIGHT_PROMPTS if encoder.light else HEAVY_PROMPTS
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode")

    async def encode(self, texts: Sequence[str]) -> Contexts:
        """Encode prompts, float32, shape (len(texts), dim)."""
        if len(texts) <= self._at_once:
            return self._encoder.encode(texts)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._encoder.encode, texts)

    def close(self) -> None:
        """Let the thread end."""
        self._thread.shutdown(wait=False)


class RemoteEncoder:
    """Encodes through another deployment, which gathers the prompts of all replicas.

    Built from what that deployment says of itself.
    """

    gathered = 1

    def __init__(
        self,
        encode: Callable[[list[str]], Awaitable[Contexts]],
        *,
        encoder_id: str,
        dim: int,
    ) -> None:
        self.encoder_id, self.dim = encoder_id, dim
        self._encode = encode

    async def encode(self, texts: Sequence[str]) -> Contexts:
        """Encode prompts, float32, shape (len(texts), dim)."""
        return await self._encode(list(texts))
