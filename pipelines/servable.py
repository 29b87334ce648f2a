"""Whether a version can serve here, alone or on trial: its files as they go to the replicas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pipelines.promotion_ports import VersionStore
from policies.artifact import PolicyArtifact
from policies.errors import ArtifactError, EncoderMismatch
from policies.publication import Canary

DEFAULT_CANARY_SHARE: Final = 0.2


class Servable:
    """Reads versions that can serve, and says of others why they cannot.

    Args:
        store: Where versions are kept.
        encoder_id: What the replicas encode with; None lets every version through.
        canary_share: Share of the requests that a version on trial decides, in (0, 1).
    """

    def __init__(self, store: VersionStore, *, encoder_id: str | None, canary_share: float) -> None:
        self._store, self._encoder_id = store, encoder_id
        self._canary_share = canary_share

    def files(self, version: int) -> dict[str, bytes]:
        """Read the files of a version that can serve.

        Raises:
            UnknownVersion: There is no such version.
            ArtifactError: Its files are damaged, or of another encoder than the replicas'.
            Unavailable: The store is away.
        """
        files = self._store.files(version)
        encoder_id = PolicyArtifact.from_files(files).encoder_id
        if self._encoder_id not in (None, encoder_id):
            raise EncoderMismatch(
                f"version {version} was trained on encoder {encoder_id}, the replicas run "
                f"{self._encoder_id}: start the service with encoder_dir set to that encoder; it "
                "then serves the newest version that fits, and any other can be promoted",
                field="version",
                value=version,
                allowed=f"a version of encoder {self._encoder_id}",
            )
        return files

    def canary(self, version: int, champion_files: Mapping[str, bytes]) -> Canary:
        """Read a version that can be tried beside the champion; raises as `files` does."""
        canary = Canary(version=version, files=self.files(version), share=self._canary_share)
        encoders = [
            artifact.encoder_id
            for artifact in (canary.artifact(), PolicyArtifact.from_files(champion_files))
        ]
        if encoders[0] != encoders[1]:
            raise ArtifactError(
                f"version {version} was trained on encoder {encoders[0]}",
                field="encoder_id",
                value=encoders[0],
                allowed=encoders[1],
            )
        return canary
