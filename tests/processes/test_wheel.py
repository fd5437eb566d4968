"""The wheel works where there is no checkout: every package, every config, the commands from any folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--no-cache-dir"]
SOURCES = ("estimator", "loadtest", "configs")
FILES = ("pyproject.toml", "README.md", "LICENSE")


def folders_with(pattern: str, *tops: str) -> set[str]:
    """Dotted names of the folders below `tops` that hold such a file."""
    found = {path.parent.relative_to(ROOT) for top in tops for path in (ROOT / top).rglob(pattern)}
    return {".".join(folder.parts) for folder in found}


def test_every_package_and_every_config_folder_is_named_in_pyproject() -> None:
    packages = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    configs = {f"ullage_{name}" for name in folders_with("*.yaml", "configs")}
    configs |= {f"ullage_{name}" for name in folders_with("*.json", "configs")}
    assert packages - {"ullage_configs"} == folders_with("__init__.py", "estimator", "loadtest") | configs
    assert not folders_with("__init__.py", "configs")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel and nothing else; built without the network."""
    home = tmp_path_factory.mktemp("wheel")
    source = home / "source"
    source.mkdir()
    for name in SOURCES:  # a copy: setuptools leaves its work beside what it builds
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in FILES:
        shutil.copy(ROOT / name, source)
    wheels = home / "wheels"
    offline = "--no-deps", "--no-index"
    for command in (
        ["wheel", *offline, "--no-build-isolation", "--wheel-dir", wheels, source],
        [
            "install",
            *offline,
            "--no-compile",
            "--find-links",
            wheels,
            "--target",
            home / "installed",
            "ullage",
        ],
    ):
        done = subprocess.run([*PIP, *command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
    shutil.rmtree(source)
    return home / "installed"


def run(installed: Path, *command: str | Path, exit_code: int = 0) -> str:
    """What a command says in a folder that knows nothing of the project."""
    foreign = installed.parent / "elsewhere"
    foreign.mkdir(exist_ok=True)
    environ = {name: value for name, value in os.environ.items() if name != "ULLAGE_CONFIGS"}
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=foreign,
        stdin=subprocess.DEVNULL,
        env={**environ, "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == exit_code, done.stderr
    return done.stdout + done.stderr


HAS_COMPILER = bool(
    shutil.which("cc") and Path(sysconfig.get_config_h_filename()).with_name("Python.h").is_file()
)


@pytest.mark.skipif(not HAS_COMPILER, reason="no C compiler here, or no headers of this Python")
def test_the_reader_in_c_is_built_wherever_it_can_be(installed: Path) -> None:
    ask = (
        "from loadtest import native; from loadtest.workers.native import IS_NATIVE\n"
        "print(IS_NATIVE, native.gaps is not None)"
    )
    assert run(installed, "-c", ask) == "True True\n"


def test_an_estimate_needs_no_checkout(installed: Path) -> None:
    ullage = installed / "bin/ullage"
    said = run(installed, ullage, "estimate", "qwen3-8b", "--gpu", "h100")
    assert "Qwen3-8B" in said
    listed = run(installed, ullage, "models")
    assert all(path.stem in listed for path in (ROOT / "configs/models").glob("*.json"))
    assert run(installed, "-c", "import estimator; print(estimator.__file__)").startswith(str(installed))


def test_the_simulated_server_starts_from_the_wheel(installed: Path) -> None:
    said = run(
        installed, "-m", "estimator.twin.server", "--profile", "tiny", "--port", "0", "--exit-with-stdin"
    )
    assert said.startswith("twin ready on http://127.0.0.1:")


def test_locust_finds_the_locustfile_and_its_scenario_in_the_wheel(installed: Path) -> None:
    nobody = "http://127.0.0.1:9"
    locust = "-m", "locust", "-f", installed / "loadtest/qwen.py", "--headless", "--host", nobody
    assert f"cannot reach {nobody}" in run(installed, *locust, exit_code=3)
