"""Two GPUs' page as NVIDIA's exporter writes it: boards are checked on machines without any."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Gauge, generate_latest

NOT_THERE: Final = 9223372036854775794.0
"""What DCGM writes where a GPU has no such figure."""
GPUS: Final = {
    "DCGM_FI_DEV_FB_USED": (70_000.0, 66_000.0),
    "DCGM_FI_DEV_FB_FREE": (11_000.0, 15_000.0),
    "DCGM_FI_DEV_GPU_UTIL": (93.0, 84.0),
    "DCGM_FI_DEV_POWER_USAGE": (610.0, 555.0),
    "DCGM_FI_DEV_GPU_TEMP": (61.0, 55.0),
    "DCGM_FI_DEV_SM_CLOCK": (1980.0, 1830.0),
    "DCGM_FI_DEV_XID_ERRORS": (0.0, 0.0),
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE": (NOT_THERE, NOT_THERE),
}


def gpu_page() -> bytes:
    """Busy, and always the same."""
    registry = CollectorRegistry()
    for name, values in GPUS.items():
        gauge = Gauge(name, name, ("UUID", "gpu"), registry=registry)
        for index, value in enumerate(values):
            gauge.labels(UUID=f"GPU-{index}", gpu=str(index)).set(value)
    return generate_latest(registry)
