"""Reads models and GPUs by name from configs/: data a person can add to without touching code.

ULLAGE_CONFIGS names the folder; else it is the one installed with the package, or that of the checkout.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, get_args

from estimator.spec import GpuSpec, SpecError, Vendor
from estimator.units import GB, MIB
from estimator.yaml_file import read_yaml

SUFFIXES: Final[Mapping[str, tuple[str, ...]]] = {"models": (".json",), "gpus": (".yaml", ".yml")}
GPU_KEYS: Final = (
    "vendor",
    "memory_total_mib",
    "memory_bandwidth_gb_per_s",
    "dense_bf16_tflops",
    "compute_capability",
)
VENDORS: Final = get_args(Vendor)
INSTALLED: Final = "ullage_configs"
"""What pyproject.toml calls configs/ in a wheel."""
LEFT_OUT: Final = re.compile(r"-\d+gb|-instruct|-text")
"""How a GPU's or a model's name may end; a short name leaves it out."""


def configs_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Raises SpecError when there is no catalog."""
    home = Path(__file__).resolve().parents[1]
    given = environ.get("ULLAGE_CONFIGS")
    # installed first: site-packages may hold somebody else's "configs"
    places = [Path(given)] if given else [home / INSTALLED, home / "configs"]
    for folder in places:
        if folder.is_dir():
            return folder
    raise SpecError(f"no catalog at {places[-1]}; set ULLAGE_CONFIGS to the project's configs folder")


def find_model(name_or_path: str, folder: Path | None = None) -> Path:
    """A path to a config.json or a model folder as it is; else the catalog's file of that name.

    "-Instruct" may be left out. Raises SpecError, with the nearest names, when there is neither.
    """
    path = Path(name_or_path)
    if path.exists():
        return path
    if path.suffix == ".json" or len(path.parts) > 2:
        raise SpecError(f"there is no {name_or_path}; give a config.json, a model folder or a catalog name")
    return _find(name_or_path, "models", folder or configs_folder())


def read_gpu(name: str, folder: Path | None = None) -> GpuSpec:
    """The GPU of that name; its memory size may be left out ("h100") where there is one size.

    Raises SpecError, with the nearest names, when the catalog has no such GPU or its file is wrong.
    """
    file = _find(name, "gpus", folder or configs_folder())
    facts = _read_yaml(file)
    unknown = [key for key in facts if key not in GPU_KEYS]
    if unknown:
        raise SpecError(f"{file.name}: unknown key {unknown[0]!r}; known are {', '.join(GPU_KEYS)}")
    vendor = facts.get("vendor", "nvidia")
    if vendor not in VENDORS:
        raise SpecError(f"{file.name}: vendor must be one of {', '.join(VENDORS)}, got {vendor!r}")
    try:
        return GpuSpec(
            name=file.stem,
            memory_total_bytes=round(facts["memory_total_mib"] * MIB),
            memory_bandwidth_bytes_per_s=float(facts["memory_bandwidth_gb_per_s"]) * GB,
            dense_bf16_flops_per_s=float(facts["dense_bf16_tflops"]) * 1e12,
            compute_capability=_capability(facts, vendor),
            vendor=vendor,
        )
    except KeyError as missing:
        raise SpecError(f"{file.name} has no {missing.args[0]}") from None
    except SpecError:
        raise
    except (TypeError, ValueError, OverflowError):
        raise SpecError(f'{file.name}: its values must be numbers, compute_capability like "9.0"') from None


def names(kind: str, folder: Path) -> list[str]:
    """Every name the catalog has of `kind` ("models" or "gpus"), sorted without regard to case."""
    return sorted({file.stem for file in _files(kind, folder)}, key=str.lower)


def _files(kind: str, folder: Path) -> list[Path]:
    return sorted(file for file in (folder / kind).glob("*") if file.suffix in SUFFIXES[kind])


def _capability(facts: Mapping[str, Any], vendor: Vendor) -> tuple[int, int] | None:
    if vendor != "nvidia" and "compute_capability" not in facts:
        return None
    major, minor = (int(part) for part in str(facts["compute_capability"]).split("."))
    return major, minor


def _find(name: str, kind: str, folder: Path) -> Path:
    by_name = {file.stem.lower(): file for file in _files(kind, folder)}
    # "Qwen/Qwen3-8B" is how the hub spells it, "RTX 4090" how a person does.
    asked = name.rsplit("/", 1)[-1].strip().lower().replace(" ", "-")
    if asked in by_name:
        return by_name[asked]
    sizes = [stem for stem in by_name if stem.startswith(asked) and LEFT_OUT.fullmatch(stem, len(asked))]
    if len(sizes) == 1:
        return by_name[sizes[0]]
    if sizes:
        raise SpecError(f"{name!r} is sold in more than one size; choose {' or '.join(sizes)}")
    near = difflib.get_close_matches(asked, by_name, n=3, cutoff=0.4)
    known = [by_name[stem].stem for stem in near] or names(kind, folder)
    raise SpecError(
        f"configs/{kind} has no {name!r}; did you mean {' or '.join(known)}?"
        if known
        else f"configs/{kind} is empty; add {name}{SUFFIXES[kind][0]} to it"
    )


def _read_yaml(file: Path) -> dict[str, Any]:
    facts = read_yaml(file)
    if not isinstance(facts, dict):
        raise SpecError(f"{file.name} must hold keys and values: {', '.join(GPU_KEYS)}")
    return facts
