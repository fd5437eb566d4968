"""What the GPUs of this machine say: memory, utilisation, power, one look a device; no GPU is a value too."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from loadtest.records import Sample

MACHINE: Final = "this machine"
"""Target of a look that reached no device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuLook:
    """One device at one moment. `device` is its UUID; `gap` says why there are no signals."""

    device: str
    signals: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    gap: str | None = None


class GpuReader(Protocol):
    """The seam. `read` may block for a while and is called in a thread; it raises nothing."""

    def read(self) -> Sequence[GpuLook]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NoGpu:
    """A reader where there is nothing to read, and the reason."""

    reason: str

    def read(self) -> Sequence[GpuLook]:
        return (GpuLook(device=MACHINE, gap=self.reason),)


class NvmlReader:
    """NVIDIA devices through NVML. `nvml` is the module pynvml, initialised.

    Devices are held by UUID, because an index means something else once CUDA_VISIBLE_DEVICES is set.
    """

    def __init__(self, nvml: Any, devices: Mapping[str, Any]) -> None:
        self._nvml = nvml
        self._devices = devices

    def read(self) -> Sequence[GpuLook]:
        return [self._look(device, handle) for device, handle in self._devices.items()]

    def _look(self, device: str, handle: Any) -> GpuLook:
        nvml = self._nvml
        signals: dict[str, float] = {}
        refusals: list[str] = []

        def ask(question: Callable[[], Mapping[str, float]]) -> None:
            try:
                signals.update(question())
            except Exception as error:  # e.g. a MIG slice has no utilisation: that signal is absent
                refusals.append(str(error))

        ask(lambda: _memory(nvml, handle))
        ask(lambda: {"gpu_utilization_ratio": nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100})
        ask(lambda: {"gpu_power_watts": nvml.nvmlDeviceGetPowerUsage(handle) / 1000})
        if not signals:
            return GpuLook(device=device, gap=f"NVML: {refusals[0]}")
        return GpuLook(device=device, signals=signals, labels={"device": device})


def _memory(nvml: Any, handle: Any) -> Mapping[str, float]:
    # version 1 of the call counts what the driver reserves as used
    memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    return {"gpu_memory_used_bytes": memory.used, "gpu_memory_total_bytes": memory.total}


def open_gpus(nvml: Any, visible: str | None) -> GpuReader:
    """A reader of the devices that CUDA_VISIBLE_DEVICES (`visible`, None when unset) lets a process see."""
    try:
        nvml.nvmlInit()
        uuids = [
            nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(index))
            for index in range(nvml.nvmlDeviceGetCount())
        ]
        shown = [part for uuid in visible_devices(visible, uuids) for part in _parts(nvml, uuid)]
        devices = {uuid: nvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in shown}
    except Exception as error:  # no driver, no permission, a device that fell off the bus
        return NoGpu(reason=f"NVML: {error}")
    if not devices:
        return NoGpu(reason="CUDA_VISIBLE_DEVICES shows no GPU of this machine" if uuids else "no GPU")
    return NvmlReader(nvml, devices)


def _parts(nvml: Any, uuid: str) -> list[str]:
    """The slices of a GPU that is cut by MIG, whose numbers have holes; else the device itself."""
    handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
    try:
        enabled, _ = nvml.nvmlDeviceGetMigMode(handle)
        if not enabled:
            return [uuid]
        slots = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    except Exception:  # a device that knows no MIG, or is a slice
        return [uuid]
    slices: list[str] = []
    for slot in range(slots):
        with contextlib.suppress(Exception):  # nothing in this slot
            slices.append(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, slot)))
    return slices or [uuid]


def open_nvml(visible: str | None) -> GpuReader:
    """The same through nvidia-ml-py, imported here because most machines that run a test have no driver."""
    import pynvml

    return open_gpus(pynvml, visible)


def visible_devices(visible: str | None, uuids: Sequence[str]) -> list[str]:
    """The UUIDs a CUDA process sees: unset shows all, and the first entry that fits none hides the rest.

    Entries are indices, UUIDs or unambiguous beginnings of UUIDs; a MIG slice is named by its own UUID.
    https://docs.nvidia.com/cuda/cuda-c-programming-guide/index.html#env-vars
    """
    if visible is None:
        return list(uuids)
    shown: list[str] = []
    for entry in (part.strip() for part in visible.split(",")):
        found = _device(entry, uuids)
        if found is None or found in shown:
            break
        shown.append(found)
    return shown


def _device(entry: str, uuids: Sequence[str]) -> str | None:
    if entry.isascii() and entry.isdigit():
        return uuids[int(entry)] if int(entry) < len(uuids) else None
    if entry.startswith("MIG-") and entry.isascii():
        return entry
    fits = [uuid for uuid in uuids if entry.startswith("GPU-") and uuid.startswith(entry)]
    return fits[0] if len(fits) == 1 else None


def is_this_machine(host: str) -> bool:
    """Whether the GPUs seen here are the server's: true for loopback names and addresses only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def gpu_rows(at_ns: int, looks: Sequence[GpuLook], reported: dict[str, str]) -> list[Sample]:
    """Samples of one round of looks. A gap becomes a row once, and again only after it ended or changed.

    `reported` holds the gap each device is known to have, and is kept up to date.
    """
    rows: list[Sample] = []
    for look in looks:
        if look.gap is not None and reported.get(look.device) == look.gap:
            continue
        if look.gap is None:
            reported.pop(look.device, None)
        else:
            reported[look.device] = look.gap
        rows.append(
            Sample(
                at_ns=at_ns,
                source="gpu",
                target=look.device,
                gap=look.gap,
                signals=look.signals,
                labels=look.labels,
            )
        )
    return rows
