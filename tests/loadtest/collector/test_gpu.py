"""A GPU is read through a narrow seam, and every way of not being there is a value with a reason."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from loadtest.collector.gpu import (
    GpuLook,
    NoGpu,
    gpu_rows,
    is_this_machine,
    open_gpus,
    open_nvml,
    visible_devices,
)

A, B, AB = "GPU-aaaa-1111", "GPU-bbbb-2222", "GPU-bbbb-3333"


def fake_nvml(uuids: tuple[str, ...] = (A, B), refused: tuple[str, ...] = ()) -> SimpleNamespace:
    """NVML with the calls the reader makes: a handle is the device's UUID, `refused` answers raise."""

    def answer(name: str, value: Any = None) -> Any:
        if name in refused:
            raise RuntimeError(f"{name}: Not Supported")
        return value

    def memory(_: str, version: int = 1) -> SimpleNamespace:
        return answer("memory", SimpleNamespace(used=70_000 if version == 2 else 70_600, total=80_000))

    return SimpleNamespace(
        nvmlMemory_v2=2,
        nvmlInit=lambda: answer("init"),
        nvmlDeviceGetCount=lambda: len(uuids),
        nvmlDeviceGetHandleByIndex=lambda index: uuids[index],
        nvmlDeviceGetUUID=lambda handle: handle,
        nvmlDeviceGetHandleByUUID=lambda uuid: answer(uuid, uuid),
        nvmlDeviceGetMemoryInfo=memory,
        nvmlDeviceGetUtilizationRates=lambda _: answer("utilization", SimpleNamespace(gpu=87)),
        nvmlDeviceGetPowerUsage=lambda _: answer("power", 650_500),
    )


ALL_SIGNALS = {
    "gpu_memory_used_bytes": 70_000,
    "gpu_memory_total_bytes": 80_000,
    "gpu_utilization_ratio": 0.87,
    "gpu_power_watts": 650.5,
}


def test_memory_without_what_the_driver_reserves_a_ratio_and_watts_are_read() -> None:
    looks = open_gpus(fake_nvml(), None).read()
    assert [look.device for look in looks] == [A, B]
    assert looks[0] == GpuLook(device=A, signals=ALL_SIGNALS, labels={"device": A})


def test_a_mig_slice_without_utilization_keeps_its_other_signals() -> None:
    (look,) = open_gpus(fake_nvml(refused=("utilization",)), "MIG-1234").read()
    assert look.device == "MIG-1234"
    assert look.signals == {
        name: ALL_SIGNALS[name] for name in ALL_SIGNALS if name != "gpu_utilization_ratio"
    }


def cut_by_mig(taken: dict[int, str]) -> SimpleNamespace:
    """A GPU whose slots of `taken` hold a slice."""

    def in_slot(_: str, slot: int) -> str:
        if slot not in taken:
            raise RuntimeError("Not Found")
        return taken[slot]

    nvml = fake_nvml((A, B), refused=("utilization",))
    nvml.nvmlDeviceGetMigMode = lambda handle: (handle == A, handle == A)
    nvml.nvmlDeviceGetMaxMigDeviceCount = lambda _: 7
    nvml.nvmlDeviceGetMigDeviceHandleByIndex = in_slot
    return nvml


def test_of_a_gpu_that_is_cut_by_mig_the_slices_are_read_whatever_slots_they_have() -> None:
    looks = open_gpus(cut_by_mig({0: "MIG-a", 3: "MIG-d"}), None).read()
    assert [look.device for look in looks] == ["MIG-a", "MIG-d", B]


def test_a_gpu_that_mig_has_not_cut_yet_is_read_whole() -> None:
    assert [look.device for look in open_gpus(cut_by_mig({}), "0").read()] == [A]


def test_a_device_that_answers_nothing_is_a_gap_with_the_drivers_reason() -> None:
    (look,) = open_gpus(fake_nvml((A,), refused=("memory", "utilization", "power")), None).read()
    assert look == GpuLook(device=A, gap="NVML: memory: Not Supported")


def test_a_driver_that_does_not_start_is_a_reason_not_an_error() -> None:
    assert open_gpus(fake_nvml(refused=("init",)), None) == NoGpu(reason="NVML: init: Not Supported")


def test_a_slice_the_driver_does_not_know_is_a_reason_too() -> None:
    reader = open_gpus(fake_nvml(refused=("MIG-gone",)), "MIG-gone")
    assert reader == NoGpu(reason="NVML: MIG-gone: Not Supported")


def test_a_machine_without_devices_says_so() -> None:
    assert open_gpus(fake_nvml(()), None) == NoGpu(reason="no GPU")


def test_hidden_devices_are_not_read() -> None:
    assert open_gpus(fake_nvml(), "") == NoGpu(reason="CUDA_VISIBLE_DEVICES shows no GPU of this machine")


def test_the_real_binding_opens_without_raising_on_any_machine() -> None:
    for look in open_nvml(None).read():
        assert (look.gap is None) != (not look.signals)


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        (None, [A, B, AB]),
        ("", []),
        ("-1", []),
        ("1,0", [B, A]),
        ("0,7,1", [A]),  # CUDA stops at the first entry that fits no device
        (" 2 ", [AB]),
        (B, [B]),
        ("GPU-aaaa", [A]),
        ("GPU-bbbb", []),  # two devices begin like that
        ("GPU-zzzz,0", []),
        ("0,0", [A]),
        ("MIG-7", ["MIG-7"]),
        ("NoDevFiles", []),
        ("²", []),
    ],
)
def test_devices_are_seen_as_cuda_sees_them(visible: str | None, seen: list[str]) -> None:
    assert visible_devices(visible, [A, B, AB]) == seen


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("10.0.0.5", False),
        ("gpu-box", False),
        ("localhost.example.org", False),
    ],
)
def test_only_a_loopback_target_runs_on_this_machines_gpus(host: str, here: bool) -> None:
    assert is_this_machine(host) is here


def test_a_missing_gpu_is_one_gap_row_and_then_silence() -> None:
    reported: dict[str, str] = {}
    looks = NoGpu(reason="NVML: no driver").read()
    (row,) = gpu_rows(1, looks, reported)
    assert (row.at_ns, row.source, row.gap, row.signals) == (1, "gpu", "NVML: no driver", {})
    assert gpu_rows(2, looks, reported) == []


def test_a_gap_that_ends_and_comes_back_is_written_again() -> None:
    reported: dict[str, str] = {}
    lost, well = GpuLook(device=A, gap="lost"), GpuLook(device=A, signals={"gpu_power_watts": 1.0})
    rounds = [gpu_rows(at, [look], reported) for at, look in enumerate([lost, lost, well, well, lost])]
    assert [[row.gap for row in rows] for rows in rounds] == [["lost"], [], [None], [None], ["lost"]]


def test_one_device_in_trouble_does_not_silence_the_other() -> None:
    reported = {A: "lost"}
    rows = gpu_rows(1, [GpuLook(device=A, gap="lost"), GpuLook(device=B, gap="lost")], reported)
    assert [row.target for row in rows] == [B]
