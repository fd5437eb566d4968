"""Which architectures with multi-head latent attention are known, and who reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from estimator.families import deepseek, deepseek_v4, kimi_vision, longcat
from estimator.fields import Fields
from estimator.model import ModelSpec

READERS: Final[Mapping[str, Callable[[Fields], ModelSpec]]] = {
    **deepseek.READERS,
    **deepseek_v4.READERS,
    **kimi_vision.READERS,
    **longcat.READERS,
}
