"""Dataclasses of which every request makes some: frozen for the type checker, and quick to make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def made_often(of: type[T]) -> type[T]:
    """`@dataclass(frozen=True, slots=True, kw_only=True)`, frozen where types are checked alone.

    A frozen dataclass sets each field through object.__setattr__: a row of 36 fields takes five times as
    long to make.
    """
    return dataclass(slots=True, kw_only=True)(of)
