"""The deployment files as data, with compose's variables replaced by their defaults."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[2]
DOCKER: Final = ROOT / "docker"
VARIABLE: Final = re.compile(r"\$\{(\w+)(?:(:[-?])([^}]*))?}")


def default_of(text: str) -> str:
    """`text` as it is where a person set no variable; a required one becomes empty."""
    return VARIABLE.sub(lambda found: found[3] or "" if found[2] == ":-" else "", text)


def with_defaults(value: Any) -> Any:
    """The same for everything inside lists and mappings."""
    if isinstance(value, dict):
        return {name: with_defaults(one) for name, one in value.items()}
    if isinstance(value, list):
        return [with_defaults(one) for one in value]
    return default_of(value) if isinstance(value, str) else value


def compose() -> dict[str, Any]:
    """compose.yaml, anchors merged, variables as written."""
    body: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
    return body


def manifests(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each Kubernetes object of a folder, beside the name of its file."""
    for path in sorted(folder.glob("*.yaml")):
        for body in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            yield path.name, body
