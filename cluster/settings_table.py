"""The settings as a Markdown table, for the README."""

from __future__ import annotations

from cluster.options import default_text
from cluster.settings import Settings


def settings_table() -> str:
    """Write one row a setting: flag, default, meaning with its unit."""
    rows = [
        f"| `--{name.replace('_', '-')}` | `{default_text(field)}` | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(["| setting | default | meaning |", "| --- | --- | --- |", *rows])
