"""A person's YAML file -> plain data, or one sentence: bounded in bytes and depth, no key twice, no alias.

An alias can make a file of a few lines unfold into gigabytes, and a key given twice loses one of its values
without a word, so neither is read.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any, Final

import yaml

from estimator.spec import SpecError

FILE_BYTES_MAX: Final = 1_000_000
DEPTH_MAX: Final = 50


def read_yaml(path: Path) -> Any:
    """Raises SpecError, which names the file and what is wrong with it."""
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
        if len(raw) > FILE_BYTES_MAX:
            raise SpecError(f"{path} has more than {FILE_BYTES_MAX:,} bytes")
        return parse_yaml(raw.decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        raise SpecError(f"{path} is not YAML as it is read here: {' '.join(str(error).split())}") from error


def parse_yaml(text: str) -> Any:
    """Plain data. Raises yaml.YAMLError, also for a key given twice, an alias and too deep a nesting."""
    loader = _PlainLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


class _PlainLoader(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise _refused(self.line, "an alias (*name): write the value itself")
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise _refused(self.line, f"more than {DEPTH_MAX} levels")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise _refused(key_node.start_mark.line, f"the key {key!r} twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _refused(line: int, what: str) -> yaml.YAMLError:
    return yaml.YAMLError(f"line {line + 1} has {what}")
