"""A config.json as checked fields: every value that comes out is of its type and within bounds.

A config.json comes from anywhere. A missing or absurd value is one sentence with the field's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from estimator.spec import SpecError

Config = Mapping[str, Any]
SIZE_MAX: Final = 100_000_000
"""Far above any model: a larger figure in a config.json is a mistake or an attack."""
LAYERS_MAX: Final = 2_000
NESTED: Final = ("thinker_config", "text_config", "llm_config", "language_config")
"""Where multimodal configs keep their language model."""
NESTING_MAX: Final = 3


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of a language model: `values` is its own object, `outer` the whole config.json.

    They are the same object unless the config nests the language model (text_config) in a multimodal one.
    Methods raise SpecError naming the key. A key whose value is null counts as absent.
    """

    values: Config
    outer: Config
    name: str

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def size(self, *keys: str, default: int | None = None, least: int = 1, most: int = SIZE_MAX) -> int:
        """The first of `keys` that is present, a whole number from `least` to `most`."""
        key = next((key for key in keys if self.has(key)), keys[0])
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            raise SpecError(f"the config has no {key}; give the model's full config.json")
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise SpecError(f"{key} must be a whole number from {least} to {most:,}, got {shown(value)}")
        return value

    def number(self, key: str, *, default: float | None = None, least: float, most: float) -> float:
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            raise SpecError(f"the config has no {key}; give the model's full config.json")
        if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
            raise SpecError(f"{key} must be a number from {least} to {most}, got {shown(value)}")
        return float(value)

    def flag(self, key: str, *, default: bool = False) -> bool:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise SpecError(f"{key} must be true or false, got {shown(value)}")
        return value

    def word(self, key: str, *, default: str | None = None) -> str:
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            raise SpecError(f"the config has no {key}; give the model's full config.json")
        if not isinstance(value, str):
            raise SpecError(f"{key} must be text, got {shown(value)}")
        return value

    def sizes(self, key: str, *, least: int = 0, most: int = SIZE_MAX) -> tuple[int, ...]:
        """A list of whole numbers; empty when absent."""
        value = self.values.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or len(value) > LAYERS_MAX:
            raise SpecError(
                f"{key} must be a list of at most {LAYERS_MAX:,} whole numbers, got {shown(value)}"
            )
        for entry in value:
            if not isinstance(entry, int) or isinstance(entry, bool) or not least <= entry <= most:
                raise SpecError(f"{key} must hold whole numbers from {least} to {most:,}, got {shown(entry)}")
        return tuple(value)

    def words(self, key: str) -> tuple[str, ...]:
        """A list of texts; empty when absent."""
        value = self.values.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or len(value) > LAYERS_MAX:
            raise SpecError(f"{key} must be a list of at most {LAYERS_MAX:,} texts, got {shown(value)}")
        for entry in value:
            if not isinstance(entry, str):
                raise SpecError(f"{key} must hold texts, got {shown(entry)}")
        return tuple(value)

    def objects(self, key: str) -> tuple[Fields, ...]:
        """A list of nested objects, each as fields of its own; empty when absent."""
        value = self.values.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or len(value) > LAYERS_MAX:
            raise SpecError(f"{key} must be a list of at most {LAYERS_MAX:,} objects, got {shown(value)}")
        for entry in value:
            if not isinstance(entry, dict):
                raise SpecError(f"{key} must hold objects, got {shown(entry)}")
        return tuple(Fields(entry, self.outer, self.name) for entry in value)

    def inner(self, key: str) -> Fields:
        """A nested object as fields of its own; empty when absent."""
        value = self.values.get(key)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise SpecError(f"{key} must be an object, got {shown(value)}")
        return Fields(value, self.outer, self.name)


def fields_of(config: Config, name: str) -> Fields:
    """Fields of the language model in `config`: its text_config (or the like) where it nests one."""
    values = config
    for _ in range(NESTING_MAX):
        nested = next((values[key] for key in NESTED if isinstance(values.get(key), dict)), None)
        if nested is None:
            break
        values = nested
    return Fields(values, config, name)


def shown(value: object) -> str:
    """A value for an error message, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
