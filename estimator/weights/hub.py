"""The safetensors headers of a model on the Hugging Face hub, read without downloading the weights.

Only byte ranges are asked for, over HTTPS, without credentials; a redirect may only lead to the hub's own
hosts. The one file of weights/ that opens a connection, and nothing here imports it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from http.client import HTTPException, HTTPMessage
from typing import IO, Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from estimator.errors import EXIT_UNREACHABLE, PlainError
from estimator.spec import SpecError
from estimator.weights.headers import HEADER_BYTES_MAX, Tensor, broken, parse_header

HUB: Final = "https://huggingface.co"
HOSTS: Final = ("huggingface.co", "hf.co")
"""The hub and, by their subdomains, the stores it sends large files from."""
INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"
INDEX_BYTES_MAX: Final = 50_000_000
FIRST_BYTES: Final = 256 * 1024
"""One request is enough for most headers."""
FILES_MAX: Final = 2_000
TIMEOUT_S: Final = 20.0
_REPO: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_REVISION: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")
_FILE: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,199}\.safetensors")

Fetch = Callable[[str, int, int], bytes]
"""(url, start, end) -> bytes start to end - 1, fewer where the file ends. Raises HubUnreachable."""


class HubUnreachable(PlainError):  # noqa: N818  (reads as the answer a person gets)
    """The hub gave no answer; `status` is the HTTP status where there was one."""

    exit_code = EXIT_UNREACHABLE

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def tensors_on_hub(repo: str, revision: str = "main", *, fetch: Fetch | None = None) -> dict[str, Tensor]:
    """Tensors of a repository's *.safetensors by name.

    Raises SpecError for a name that is none or files that are not safetensors, HubUnreachable when offline.
    """
    if not _REPO.fullmatch(repo) or not _REVISION.fullmatch(revision):
        raise SpecError(f"{repo!r} at {revision!r} is no model on the hub; write OWNER/NAME")
    ask = fetch or https_fetch
    base = f"{HUB}/{repo}/resolve/{revision}"
    return {
        name: tensor
        for file in _files(base, ask)
        for name, tensor in _header(f"{base}/{file}", file, ask).items()
    }


def _files(base: str, fetch: Fetch) -> list[str]:
    try:
        text = fetch(f"{base}/{INDEX}", 0, INDEX_BYTES_MAX)
    except HubUnreachable as error:
        if error.status != 404:
            raise
        return [SINGLE]
    try:
        files = sorted(set(json.loads(text)["weight_map"].values()))
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError):
        raise SpecError(f"{INDEX} on the hub is not an index of safetensors files") from None
    if len(files) > FILES_MAX or not all(_FILE.fullmatch(str(file)) for file in files):
        raise SpecError(f"{INDEX} on the hub names files that are not safetensors of this model")
    return files


def _header(url: str, file: str, fetch: Fetch) -> dict[str, Tensor]:
    first = fetch(url, 0, FIRST_BYTES)
    length = int.from_bytes(first[:8], "little")
    if len(first) < 8 or length > HEADER_BYTES_MAX:
        raise broken(file)
    text = first[8 : 8 + length]
    if len(text) < length:
        text += fetch(url, FIRST_BYTES, 8 + length)
    return parse_header(text, file)


class OwnHostsOnly(HTTPRedirectHandler):
    """Follows a redirect to the hub's own hosts over HTTPS, refuses any other."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        check_own(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def check_own(url: str) -> None:
    """Raises HubUnreachable unless `url` is HTTPS on the hub's own hosts."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme != "https" or not any(host == own or host.endswith(f".{own}") for own in HOSTS):
        raise HubUnreachable(
            f"the hub sends us to {parts.scheme}://{host}, which is not its own; not followed"
        )


def https_fetch(url: str, start: int, end: int) -> bytes:
    """The Fetch that asks the hub."""
    check_own(url)
    request = Request(url, headers={"Range": f"bytes={start}-{end - 1}", "User-Agent": "ullage"})  # noqa: S310
    try:
        with build_opener(OwnHostsOnly).open(request, timeout=TIMEOUT_S) as answer:
            return _read(answer, start, end)
    except HTTPError as error:
        error.close()
        why = "it is gated or private" if error.code in (401, 403) else f"HTTP {error.code}"
        raise HubUnreachable(f"the hub does not give {url}: {why}", error.code) from None
    except (URLError, HTTPException, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise HubUnreachable(
            f"cannot reach {HUB} ({reason}): give the model's folder, or its config.json alone"
        ) from None


def _read(answer: Any, start: int, end: int) -> bytes:
    # A server that ignores the range sends the file from its beginning.
    if start > 0 and answer.status != 206:
        raise HubUnreachable(f"{HUB} ignores byte ranges: give the model's folder, or its config.json alone")
    found: bytes = answer.read(end - start)
    return found
