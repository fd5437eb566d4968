"""Being written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from estimator.fields import Fields
from estimator.model import ModelSpec

READERS: Final[Mapping[str, Callable[[Fields], ModelSpec]]] = {}
