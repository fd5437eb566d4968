"""A vLLM for the checks of one module: others should have the machine to themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from vllm_server import VLLM_PYTHON, Vllm, running


@pytest.fixture(scope="session")
def vllm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where models and logs of servers go."""
    if not VLLM_PYTHON.is_file():
        pytest.skip("no vLLM environment: run `make vllm`")
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="module")
def vllm(vllm_folder: Path) -> Iterator[Vllm]:
    with running(vllm_folder) as server:
        yield server
