"""Recorded outcomes, encoded with an encoder that is built where it is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.launch import ensure_encoder
from pipelines.embeddings import Contexts, cached_contexts
from pipelines.outcomes import load_outcomes
from pipelines.perturbation import PERTURBATIONS
from pipelines.quality import EncodedOutcomes
from policies.encoder import load_encoder
from policies.encoder_files import KINDS, EncoderKind
from policies.errors import InvalidRequest
from policies.prompt_form import FORM_VERSION

Progress = Callable[[str, int, int], None]


def encoded_outcomes(
    source: str,
    encoder: str,
    cache_dir: Path,
    *,
    perturbed: Sequence[str] = (),
    progress: Progress,
) -> EncodedOutcomes:
    """Read outcomes and encode their prompts, or find them encoded.

    Args:
        source: What `load_outcomes` takes.
        encoder: A kind, built in the cache where it is missing, or an encoder's folder.
        cache_dir: Where encoders and contexts are kept.
        perturbed: Ways to write the prompts differently, encoded beside; see PERTURBATIONS.
        progress: Told each step.

    Raises:
        InvalidRequest: There is no such encoder, or way to write prompts.
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

    def encoded(prompts: Sequence[str], step: str) -> Contexts:
        return cached_contexts(
            prompts,
            loaded,
            cache_dir / "contexts",
            progress=lambda done, total: progress(f"encoding {step}", done, total),
        )

    ways = {way: _perturbation(way) for way in perturbed}
    return EncodedOutcomes(
        table=table,
        contexts=encoded(table.prompts, name),
        encoder_id=loaded.encoder_id,
        perturbed={
            way: encoded([changed(prompt) for prompt in table.prompts], f"{name}, {way}")
            for way, changed in ways.items()
        },
    )


def _perturbation(way: str) -> Callable[[str], str]:
    """Look a way to write prompts differently up; raises InvalidRequest."""
    if way not in PERTURBATIONS:
        allowed = ", ".join(PERTURBATIONS)
        raise InvalidRequest(
            f"perturb={way} must be some of {allowed}", field="perturb", value=way, allowed=allowed
        )
    return PERTURBATIONS[way]


def built_encoder(kind: EncoderKind, cache_dir: Path, *, progress: Progress) -> Path:
    """Return the folder of an encoder in the cache, built where it is missing."""
    # By version, so that a cache from before it is no other measurement.
    folder = cache_dir / f"encoder-{kind}-form{FORM_VERSION}"
    progress(f"building the encoder {kind}", 0, 1)
    ensure_encoder(folder, kind=kind)
    return folder
