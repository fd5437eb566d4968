"""Where a server is and how to authenticate to it: parsed once, so that no secret travels in a URL."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from estimator.errors import PlainError

API_KEY_VARIABLE: Final = "ULLAGE_API_KEY"
API_KEY_FILE_VARIABLE: Final = "ULLAGE_API_KEY_FILE"


class OriginError(PlainError, ValueError):
    """A host or key that cannot be used: one sentence that names the fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A server's base address. `path` is what stands before /v1, without a trailing slash."""

    scheme: str
    host: str
    port: int
    path: str = ""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = {"http": 80, "https": 443}[self.scheme]
        return host if self.port == usual else f"{host}:{self.port}"


def parse_origin(text: str) -> Origin:
    """Raises OriginError unless `text` is http(s)://host[:port][/path] without user, query or fragment."""
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError as error:
        raise OriginError(f"--host {text!r} is not a URL: {error}") from error
    if parts.username is not None or parts.password is not None:
        raise OriginError(f"--host must not carry a user or password; put the key into {API_KEY_VARIABLE}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise OriginError(f"--host {text!r} must look like http://127.0.0.1:8000")
    if parts.query or parts.fragment:
        raise OriginError(f"--host {text!r} must end before '?' and '#'")
    path = parts.path.rstrip("/").removesuffix("/v1")
    return Origin(
        scheme=parts.scheme,
        host=parts.hostname,
        port=port or {"http": 80, "https": 443}[parts.scheme],
        path=path,
    )


class ApiKey:
    """A secret that shows itself only to the request that carries it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        if not value or any(ch.isspace() or not ch.isprintable() for ch in value):
            raise OriginError("the API key is empty or holds white space; check where it comes from")
        self._value = value

    def header(self) -> tuple[str, str]:
        return "Authorization", f"Bearer {self._value}"

    def blotted_out(self, text: str) -> str:
        """`text` without the secret: some servers repeat it in their error."""
        return text.replace(self._value, "***")

    def __repr__(self) -> str:
        return "ApiKey(***)"


def read_api_key(environ: Mapping[str, str] = os.environ) -> ApiKey | None:
    """The key from ULLAGE_API_KEY or the 0600 file named by ULLAGE_API_KEY_FILE; None without either."""
    if environ.get(API_KEY_VARIABLE):
        return ApiKey(environ[API_KEY_VARIABLE])
    named = environ.get(API_KEY_FILE_VARIABLE)
    if not named:
        return None
    path = Path(named)
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise OriginError(f"{path} can be read by others; run chmod 600 {path}")
        return ApiKey(path.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        raise OriginError(f"cannot read the API key file {path}: {error}") from error
