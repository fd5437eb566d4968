"""Bytes, tokens and seconds: the constants and the way numbers are shown to a person.

GiB (2**30) is what CUDA and vLLM mean by "GB" of memory; GB (10**9) is what data sheets sell.
Inside the code every quantity is a plain number whose name ends in its unit.
"""

from __future__ import annotations

KIB = 2**10
MIB = 2**20
GIB = 2**30
GB = 10**9


def ceil_div(numerator: int, denominator: int) -> int:
    """Smallest integer not below numerator / denominator; exact for integers of any size."""
    return -(-numerator // denominator)


def format_bytes(count_bytes: float) -> str:
    """Bytes for a reader, in binary units: 1536 -> '1.50 KiB', 21474836480 -> '20.00 GiB'."""
    size = abs(count_bytes)
    sign = "-" if count_bytes < 0 else ""
    for unit, scale in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size >= scale:
            return f"{sign}{size / scale:,.2f} {unit}"
    return f"{sign}{size:,.0f} B"
