"""Recorded outcomes, encoded with an encoder that is built where it is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cluster.launch import ensure_encoder
from pipelines.embeddings import cached_contexts
from pipelines.outcomes import load_outcomes
from pipelines.quality import EncodedOutcomes
from policies.encoder import load_encoder
from policies.encoder_files import KINDS, EncoderKind
from policies.errors import InvalidRequest

Progress = Callable[[str, int, int], None]


def encoded_outcomes(
    source: str, encoder: str, cache_dir: Path, *, progress: Progress
) -> EncodedOutcomes:
    """Read outcomes and encode their prompts, or find them encoded.

    Args:
        source: What `load_outcomes` takes.
        encoder: A kind, built in the cache where it is missing, or an encoder's folder.
        cache_dir: Where encoders and contexts are kept.
        progress: Told each step.

    Raises:
        InvalidRequest: There is no such encoder.
        BadOutcomeFile: The outcomes cannot be read.
        ArtifactError: The encoder cannot.
    """
    table = load_outcomes(source)
    folder = Path(encoder)
    if encoder not in KINDS and not folder.is_dir():
        allowed = f"{', '.join(KINDS)}, or the folder of an encoder"
        raise InvalidRequest(
            f"encoder={encoder} must be {allowed}", field="encoder", value=encoder, allowed=allowed
        )
    if encoder in KINDS:
        folder = built_encoder(encoder, cache_dir, progress=progress)
    loaded = load_encoder(folder)
    name = Path(source).name
    contexts = cached_contexts(
        table.prompts,
        loaded,
        cache_dir / "contexts",
        progress=lambda done, total: progress(f"encoding {name}", done, total),
    )
    return EncodedOutcomes(table=table, contexts=contexts, encoder_id=loaded.encoder_id)


def built_encoder(kind: EncoderKind, cache_dir: Path, *, progress: Progress) -> Path:
    """Return the folder of an encoder in the cache, built where it is missing."""
    folder = cache_dir / f"encoder-{kind}"
    progress(f"building the encoder {kind}", 0, 1)
    ensure_encoder(folder, kind=kind)
    return folder
