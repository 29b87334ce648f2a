"""The Kubernetes manifests as Kustomize puts them together."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

KUBERAY: Final = Path(__file__).parents[2] / "cluster" / "kuberay"
# Folders that can be applied; the others are parts of them.
OVERLAYS: Final = ("base", "production", "try")


@functools.cache
def built(folder: Path) -> list[dict[str, Any]]:
    """Build a folder; skips the test where there is neither kubectl nor kustomize."""
    kubectl, kustomize = shutil.which("kubectl"), shutil.which("kustomize")
    if kubectl is None and kustomize is None:
        pytest.skip("neither kubectl nor kustomize is installed")
    command = [kubectl, "kustomize"] if kubectl is not None else [str(kustomize), "build"]
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def written() -> list[tuple[str, dict[str, Any]]]:
    """Read every document of every file as it is written, with the file it is from."""
    files = sorted(KUBERAY.rglob("*.yaml"))
    return [
        (path.relative_to(KUBERAY).as_posix(), document)
        for path in files
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
    ]
