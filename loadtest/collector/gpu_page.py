"""A GPU exporter's page -> one look a device: NVIDIA DCGM, nvidia_gpu_exporter, AMD; pure, never raises.

Exporters write huge numbers for what a device does not have: every figure has a bound above which it was not
seen. A figure that is not on the page is absent, never zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from loadtest.collector.gpu import GpuLook
from loadtest.collector.series import UNREADABLE, Page, parse_series

MIB: Final = 2.0**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """The first of `names` that a device shows below `below`, times `factor`."""

    names: tuple[str, ...]
    below: float
    factor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Exporter:
    """How one exporter says it. Devices are told apart by `device_labels`; the total is the sum of `total`.

    Figures of `whole_device` are wrong or 0 for a device with a label of `slice_labels`: a part of a GPU.
    """

    name: str
    used: Figure
    total: tuple[Figure, ...]
    busy: tuple[Figure, ...]
    power: Figure
    device_labels: tuple[str, ...]
    slice_labels: tuple[str, ...] = ()
    whole_device: frozenset[str] = frozenset()


def _both_ways(name: str) -> tuple[str, ...]:
    return name, f"amd_{name}"  # some installations put a prefix before AMD's names


_MIB_MAX: Final = 1e9
_WATTS_MAX: Final = 1e6
DCGM: Final = Exporter(
    name="dcgm",
    used=Figure(names=("DCGM_FI_DEV_FB_USED",), below=_MIB_MAX, factor=MIB),
    total=tuple(
        Figure(names=(f"DCGM_FI_DEV_FB_{part}",), below=_MIB_MAX, factor=MIB)
        for part in ("USED", "FREE", "RESERVED")
    ),
    busy=(
        Figure(names=("DCGM_FI_PROF_GR_ENGINE_ACTIVE",), below=1.001),
        Figure(names=("DCGM_FI_DEV_GPU_UTIL",), below=100.1, factor=0.01),
    ),
    power=Figure(names=("DCGM_FI_DEV_POWER_USAGE",), below=_WATTS_MAX),
    device_labels=("UUID", "GPU_I_ID"),
    slice_labels=("GPU_I_ID",),
    whole_device=frozenset({"DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_POWER_USAGE"}),
)
NVIDIA_SMI: Final = Exporter(
    name="nvidia_gpu_exporter",
    used=Figure(names=("nvidia_smi_memory_used_bytes",), below=1e15),
    total=(Figure(names=("nvidia_smi_memory_total_bytes",), below=1e15),),
    busy=(Figure(names=("nvidia_smi_utilization_gpu_ratio",), below=1.001),),
    power=Figure(names=("nvidia_smi_power_draw_watts",), below=_WATTS_MAX),
    device_labels=("uuid",),
)
AMD: Final = Exporter(
    name="amd",
    used=Figure(names=_both_ways("gpu_used_vram"), below=_MIB_MAX, factor=MIB),
    total=(Figure(names=_both_ways("gpu_total_vram"), below=_MIB_MAX, factor=MIB),),
    busy=(Figure(names=_both_ways("gpu_gfx_activity"), below=100.1, factor=0.01),),
    # MI3xx show the first, MI2xx the second
    power=Figure(
        names=(*_both_ways("gpu_package_power"), *_both_ways("gpu_average_package_power")), below=_WATTS_MAX
    ),
    device_labels=("hostname", "gpu_id", "gpu_partition_id"),
)
EXPORTERS: Final = (DCGM, NVIDIA_SMI, AMD)


def _figures(exporter: Exporter) -> Iterator[Figure]:
    yield from (exporter.used, *exporter.total, *exporter.busy, exporter.power)


_WANTED: Final = frozenset(
    name for exporter in EXPORTERS for figure in _figures(exporter) for name in figure.names
)
_BEGINNINGS: Final = ("DCGM_FI_", "nvidia_smi_", "gpu_", "amd_gpu_")


def read_gpu_page(text: str, page: str) -> Sequence[GpuLook]:
    """A look at every device on the page; one gap of `page`, its address, where there is none."""
    *lines, cut_line = text.split("\n")
    kept = [line for line in (*lines, cut_line + UNREADABLE) if line.startswith(_BEGINNINGS)]
    found, _ = parse_series(kept, _WANTED)
    for exporter in EXPORTERS:
        looks = list(_looks(exporter, found))
        if looks:
            return looks
    return (GpuLook(device=page, gap="no figure of a known GPU exporter on the page"),)


def _looks(exporter: Exporter, page: Page) -> Iterator[GpuLook]:
    by_device: dict[str, dict[str, float]] = {}
    slices: set[str] = set()
    for name in sorted({name for figure in _figures(exporter) for name in figure.names}):
        for series in page.get(name) or ():
            device = "/".join(filter(None, map(series.labels.get, exporter.device_labels)))
            by_device.setdefault(device, {})[name] = series.value
            if any(series.labels.get(label) for label in exporter.slice_labels):
                slices.add(device)
    for device, values in by_device.items():
        hidden = exporter.whole_device if device in slices else frozenset()
        seen = {name: value for name, value in values.items() if name not in hidden}
        signals = _signals(exporter, seen)
        labels = {"device": device, "via": exporter.name}
        if signals:
            yield GpuLook(device=device, signals=signals, labels=labels)
        else:
            yield GpuLook(device=device, labels=labels, gap=f"{exporter.name}: no figure of this device")


def _signals(exporter: Exporter, values: Mapping[str, float]) -> dict[str, float]:
    parts = [value for figure in exporter.total if (value := _read(figure, values)) is not None]
    has_all = len(parts) >= min(2, len(exporter.total))  # older DCGM shows no reserved memory
    found = {
        "gpu_memory_used_bytes": _read(exporter.used, values),
        "gpu_memory_total_bytes": sum(parts) if has_all else None,
        "gpu_utilization_ratio": next(
            (value for figure in exporter.busy if (value := _read(figure, values)) is not None), None
        ),
        "gpu_power_watts": _read(exporter.power, values),
    }
    return {name: value for name, value in found.items() if value is not None}


def _read(figure: Figure, values: Mapping[str, float]) -> float | None:
    for name in figure.names:
        value = values.get(name)
        if value is not None and value < figure.below:
            return value * figure.factor
    return None
