"""A base's rotary settings in today's spelling, whichever its config.json has."""

from __future__ import annotations

from typing import Any

from alpaca.errors import ExportRefused


def rope_settings(config: dict[str, Any]) -> dict[str, Any]:
    """`rope_type` ("default" or "llama3"), `rope_theta`, and what a scaling has. Raises ExportRefused for another
    scaling than Llama 3.1's, which the formats have no place for."""
    named = config.get("rope_parameters") or {}
    rope = dict(config.get("rope_scaling") or named)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "llama3"):
        raise ExportRefused(
            f"the base scales its rotary frequencies by {kind!r}; only Llama 3.1's way is written. Export `merged`"
        )
    theta = rope.get("rope_theta") or named.get("rope_theta") or config.get("rope_theta") or 10_000.0
    return rope | {"rope_type": kind, "rope_theta": float(theta)}
