"""The textbook division, free VRAM by the VRAM of one request, with the reason not to trust it. Pure."""

from __future__ import annotations

from typing import Any

from estimator.rules_of_thumb import RULES, textbook_requests
from loadtest.reporter.buffer import safe_limit
from loadtest.reporter.estimate_text import KEPT_TEXT, row, wrapped


def textbook_text(free_vram_gib: float, per_request_mib: float) -> str:
    """The textbook division, with the reason not to trust it."""
    requests = textbook_requests(free_vram_gib, per_request_mib)
    rule = RULES["requests"]
    lines = [
        f"The textbook: {rule.formula}",
        *row("requests", f"{requests:,}", f"floor({free_vram_gib:g} GiB x 1024 / {per_request_mib:g} MiB)"),
        *row("N_safe", f"{safe_limit(requests):,}", f"floor({KEPT_TEXT} x {requests:,})"),
    ]
    return "\n".join((*lines, "", *wrapped("It misleads: ", rule.misleads)))


def textbook_dict(free_vram_gib: float, per_request_mib: float) -> dict[str, Any]:
    """The same for a machine."""
    requests = textbook_requests(free_vram_gib, per_request_mib)
    return {
        "free_vram_gib": free_vram_gib,
        "per_request_mib": per_request_mib,
        "requests": requests,
        "n_safe": safe_limit(requests),
        "misleads": RULES["requests"].misleads,
    }
