"""A model's config.json -> ModelSpec: finds the file, reads it with care, hands it to its family's reader.

A config.json comes from anywhere, so every value is checked and bounded. An architecture whose cache
is not known to the byte is refused by name: no number is better than a wrong one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from estimator.families import dense, generic, hybrid, latent, pruned, qwen_vision, sparse, windowed
from estimator.fields import Config, Fields, fields_of
from estimator.model import ModelSpec
from estimator.spec import SpecError

CONFIG_BYTES_MAX: Final = 10_000_000
QUANT_FILE: Final = "hf_quant_config.json"
Reader = Callable[[Fields], ModelSpec]
READERS: Final[Mapping[str, Reader]] = {
    **dense.READERS,
    **sparse.READERS,
    **qwen_vision.READERS,
    **pruned.READERS,
    **windowed.READERS,
    **latent.READERS,
    **hybrid.READERS,
}
"""By architecture, the name that vLLM itself dispatches on."""


def read_model(path: Path) -> ModelSpec:
    """ModelSpec of a config.json, of a model folder that holds one, or of a file of the catalog.

    Raises SpecError when it cannot be read, UnsupportedModel when we cannot count it.
    """
    file = path / "config.json" if path.is_dir() else path
    name = file.resolve().parent.name if file.name == "config.json" else file.stem
    config = _read_json(file)
    quant_file = file.parent / QUANT_FILE
    if file.name == "config.json" and quant_file.exists():
        config = with_quantisation_file(config, _read_json(quant_file))
    return model_spec(config, name)


def with_quantisation_file(config: Config, quant: Config) -> Config:
    """ModelOpt writes a file of its own; vLLM reads it where config.json names no quantization_config."""
    return config if config.get("quantization_config") else {**config, "quantization_config": quant}


def model_spec(config: Config, name: str) -> ModelSpec:
    """Raises SpecError when a key is missing or absurd, UnsupportedModel when we cannot count the model."""
    if not isinstance(config.get("model_type"), str):
        raise SpecError("the config names no model_type; give the config.json of a Hugging Face model")
    architectures = config.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else None
    if not isinstance(architecture, str):
        raise SpecError("the config names no architectures; give the config.json of a Hugging Face model")
    return READERS.get(architecture, generic.read_generic)(fields_of(config, name))


def _read_json(file: Path) -> Config:
    try:
        with file.open("rb") as stream:
            text = stream.read(CONFIG_BYTES_MAX + 1)
    except OSError as error:
        raise SpecError(f"cannot read {file}: {error.strerror or error}") from None
    if len(text) > CONFIG_BYTES_MAX:
        raise SpecError(f"{file} is larger than {CONFIG_BYTES_MAX:,} bytes, which no config.json is")
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        raise SpecError(f"{file} is not JSON; give a model's config.json or the folder it is in") from None
    if not isinstance(config, dict):
        raise SpecError(f"{file} holds no JSON object; give a model's config.json or the folder it is in")
    return config
