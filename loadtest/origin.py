"""Where a server is and how to authenticate to it: parsed once, so that no secret travels in a URL."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from estimator.errors import PlainError
from loadtest.access import API_KEY_NAME_VARIABLE, Access

API_KEY_VARIABLE: Final = "ULLAGE_API_KEY"
API_KEY_FILE_VARIABLE: Final = "ULLAGE_API_KEY_FILE"
METRICS_KEY_VARIABLE: Final = "ULLAGE_METRICS_KEY"
METRICS_KEY_FILE_VARIABLE: Final = "ULLAGE_METRICS_KEY_FILE"
OPENAI_KEY_VARIABLE: Final = "OPENAI_API_KEY"


class OriginError(PlainError, ValueError):
    """A host or key that cannot be used: one sentence that names the fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A server's base address. `path` is what stands before /v1, without a trailing slash."""

    scheme: str
    host: str
    port: int
    path: str = ""
    access: Access = field(default_factory=Access)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"

    def is_same_server(self, other: Origin) -> bool:
        """The same origin as browsers mean it: scheme, host and port."""
        return (self.scheme, self.host, self.port) == (other.scheme, other.host, other.port)

    @property
    def is_unverified(self) -> bool:
        """Who answers is not known: a TLS server whose certificate nobody looks at."""
        return self.scheme == "https" and self.access.insecure

    @property
    def warning(self) -> str | None:
        """To be shown, loudly, wherever this server is asked for; None when there is nothing to warn of."""
        if not self.is_unverified:
            return None
        return (
            f"WARNING: --insecure: the certificate of {self} is not verified, so anybody may answer for it; "
            "nothing will be signed off"
        )

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = {"http": 80, "https": 443}[self.scheme]
        return host if self.port == usual else f"{host}:{self.port}"


def parse_origin(text: str, access: Access | None = None, option: str = "--host") -> Origin:
    """Raises OriginError unless `text` is http(s)://host[:port][/path] without user, query or fragment.

    `option` is what the person gave it as.
    """
    shown = repr(text) if "@" not in text else "(not shown: it may hold a password)"
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError as error:
        raise OriginError(f"{option} {shown} is not a URL: correct its host and port") from error
    if parts.username is not None or parts.password is not None:
        raise OriginError(f"{option} must not carry a user or password; put the key into {API_KEY_VARIABLE}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise OriginError(f"{option} {shown} must look like http://127.0.0.1:8000")
    if parts.query or parts.fragment:
        raise OriginError(f"{option} {shown} must end before '?' and '#'")
    path = parts.path.rstrip("/").removesuffix("/v1")
    return Origin(
        scheme=parts.scheme,
        host=parts.hostname,
        port=port or {"http": 80, "https": 443}[parts.scheme],
        path=path,
        access=access or Access(),
    )


class ApiKey:
    """A secret that shows itself only to the request that carries it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        if not value or any(ch.isspace() or not (ch.isprintable() and ch.isascii()) for ch in value):
            raise OriginError("the API key is empty or holds more than plain characters; check its source")
        self._value = value

    def header(self) -> tuple[str, str]:
        return "Authorization", f"Bearer {self._value}"

    def blotted_out(self, text: str) -> str:
        """`text` without the secret: some servers repeat it in their error."""
        return text.replace(self._value, "***")

    def __repr__(self) -> str:
        return "ApiKey(***)"


def read_api_key(environ: Mapping[str, str] = os.environ, variable: str | None = None) -> ApiKey | None:
    """The key, or None when nobody gave one; it is sent to the asked-for host and to no other.

    Looked for in ULLAGE_API_KEY, then in the 0600 file that ULLAGE_API_KEY_FILE names, then in the variable
    that `variable` or ULLAGE_API_KEY_VARIABLE names, then in OPENAI_API_KEY. Raises OriginError.
    """
    if environ.get(API_KEY_VARIABLE):
        return ApiKey(environ[API_KEY_VARIABLE])
    if environ.get(API_KEY_FILE_VARIABLE):
        return _key_of_file(Path(environ[API_KEY_FILE_VARIABLE]))
    named = variable or environ.get(API_KEY_NAME_VARIABLE)
    if named and not environ.get(named):
        raise OriginError(f"the API key was to be in the variable {named}, which is not set: export it")
    value = environ.get(named or OPENAI_KEY_VARIABLE)
    return ApiKey(value) if value else None


def read_metrics_key(environ: Mapping[str, str] = os.environ) -> ApiKey | None:
    """The key of metrics pages that want another than the API: ULLAGE_METRICS_KEY, or its 0600 file.

    Raises OriginError.
    """
    if environ.get(METRICS_KEY_VARIABLE):
        return ApiKey(environ[METRICS_KEY_VARIABLE])
    path = environ.get(METRICS_KEY_FILE_VARIABLE)
    return _key_of_file(Path(path)) if path else None


def key_of_page(page: Origin, host: Origin, environ: Mapping[str, str] = os.environ) -> ApiKey | None:
    """What a metrics page is asked with: the pages' own key, which goes to every page a person named.

    Without one, the loaded server's key goes to the pages of that server (`host`) alone. Raises OriginError.
    """
    own = read_metrics_key(environ)
    if own is not None or not page.is_same_server(host):
        return own
    return read_api_key(environ, variable=host.access.api_key_variable)


def _key_of_file(path: Path) -> ApiKey:
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise OriginError(f"{path} can be read by others; run chmod 600 {path}")
        return ApiKey(path.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        raise OriginError(f"cannot read the API key file {path}: {error}") from error


def require_host_of_command(host: str, of_command: str, key: ApiKey | None) -> None:
    """Locust's page lets whoever sees it type another host; the key must not go there.

    Raises OriginError when there is a key and `host` is not the server of the command line.
    """
    if key is None or host == of_command:
        return
    if not of_command or not parse_origin(host).is_same_server(parse_origin(of_command)):
        raise OriginError(
            f"the API key is not sent to a host that was typed into the web page ({parse_origin(host)}): "
            "start Locust with --host for that server"
        )
