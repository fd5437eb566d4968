"""A GPU exporter's page is read in bytes, ratios and watts; what a device does not have is absent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.collector.gpu import GpuLook
from loadtest.collector.gpu_page import EXPORTERS, read_gpu_page

PAGES = Path(__file__).parents[2] / "fixtures" / "gpus"
URL = "http://n1:9400/metrics"
MIB = 2**20


def devices(name: str) -> Mapping[str, GpuLook]:
    looks = read_gpu_page((PAGES / name).read_text(), URL)
    return {look.device: look for look in looks}


def test_dcgm_counts_mebibytes_and_its_total_has_three_parts() -> None:
    look = devices("dcgm.txt")["GPU-1a"]
    assert look.signals == {
        "gpu_memory_used_bytes": 131_000 * MIB,
        "gpu_memory_total_bytes": (131_000 + 12_000 + 771) * MIB,
        "gpu_utilization_ratio": pytest.approx(0.93),
        "gpu_power_watts": 612.5,
    }
    assert look.labels == {"device": "GPU-1a", "via": "dcgm"}


def test_the_numbers_dcgm_writes_for_nothing_are_not_figures() -> None:
    assert devices("dcgm.txt")["GPU-2b"].signals == {"gpu_memory_used_bytes": 40_000 * MIB}


def test_a_mig_slice_is_a_device_and_the_whole_gpus_figures_are_not_its_own() -> None:
    seen = devices("dcgm-mig.txt")
    assert seen["GPU-1a/1"].signals == {
        "gpu_memory_used_bytes": 38_000 * MIB,
        "gpu_memory_total_bytes": 40_000 * MIB,
        "gpu_utilization_ratio": 0.84,  # GPU_UTIL says 0 for a slice, and the power is that of all slices
    }
    assert seen["GPU-1a/2"].signals == {"gpu_memory_used_bytes": 100 * MIB}


def test_nvidia_gpu_exporter_shows_bytes_and_ratios_and_an_infinity_is_no_power() -> None:
    assert devices("nvidia-gpu-exporter.txt")["0c5a"].signals == {
        "gpu_memory_used_bytes": 2.2e10,
        "gpu_memory_total_bytes": 2.5757220864e10,
        "gpu_utilization_ratio": 0.97,
    }


@pytest.mark.parametrize("prefix", ["", "amd_"])
def test_amd_says_mb_and_means_mebibytes(prefix: str) -> None:
    text = (PAGES / "amd.txt").read_text().replace("\ngpu_", f"\n{prefix}gpu_")
    seen = {look.device: look.signals for look in read_gpu_page(text, URL)}
    assert seen["mi/0"] == {
        "gpu_memory_used_bytes": 176_000 * MIB,
        "gpu_memory_total_bytes": 196_592 * MIB,
        "gpu_utilization_ratio": pytest.approx(0.88),
        "gpu_power_watts": 702,
    }
    assert seen["mi/1"] == {  # an MI2xx has its power under another name; partitioned, no activity
        "gpu_memory_used_bytes": 60_000 * MIB,
        "gpu_memory_total_bytes": 65_520 * MIB,
        "gpu_power_watts": 455,
    }


def test_a_page_without_a_gpu_is_a_gap_of_the_page() -> None:
    assert read_gpu_page("node_load1 0.5\n", URL) == (
        GpuLook(device=URL, gap="no figure of a known GPU exporter on the page"),
    )


def test_a_device_of_which_nothing_is_known_is_a_gap_of_its_own() -> None:
    page = 'DCGM_FI_DEV_FB_USED{UUID="GPU-9"} 9223372036854775794\n'
    (look,) = read_gpu_page(page, URL)
    assert (look.device, look.gap) == ("GPU-9", "dcgm: no figure of this device")


def test_names_belong_to_one_exporter_each() -> None:
    names = [
        name
        for exporter in EXPORTERS
        for name in {
            *exporter.used.names,
            *exporter.power.names,
            *(n for f in exporter.busy for n in f.names),
        }
    ]
    assert len(names) == len(set(names))


@given(st.text(max_size=200), st.sampled_from(sorted(path.name for path in PAGES.glob("*.txt"))))
def test_no_text_makes_the_reader_raise_or_adds_a_figure(tail: str, name: str) -> None:
    page = (PAGES / name).read_text()
    for look in read_gpu_page(page + tail, URL):
        assert (look.gap is None) != (not look.signals)
