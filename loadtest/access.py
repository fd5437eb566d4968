"""How a server may be reached: which certificates are believed, which variable holds the key, who is public.

Nothing here is secret, so it stands in the manifest and every process of a run goes by the same.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from estimator.errors import PlainError

CA_FILE_VARIABLE: Final = "ULLAGE_CA_FILE"
INSECURE_VARIABLE: Final = "ULLAGE_INSECURE"
PUBLIC_HOST_VARIABLE: Final = "ULLAGE_ALLOW_PUBLIC_HOST"
API_KEY_NAME_VARIABLE: Final = "ULLAGE_API_KEY_VARIABLE"
USERS_CAP_VARIABLE: Final = "ULLAGE_USERS_CAP"
NO_AUDIT_VARIABLE: Final = "ULLAGE_NO_AUDIT"
USERS_CAP: Final = 5_000
"""More users at once than this are a typing error more often than a wish."""

Resolve = Callable[..., Any]
"""socket.getaddrinfo, or what stands in for it."""


class AccessError(PlainError, ValueError):
    """The server may not be reached so: one sentence that names the fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What a person said of the way to the server. `ca_file` stands in place of the system's certificates.

    `insecure` believes any certificate, so nothing is signed off. `api_key_variable` names the environment
    variable with the key; the key itself is never kept.
    """

    ca_file: str | None = None
    insecure: bool = False
    api_key_variable: str | None = None


def client_context(access: Access, kind: type[ssl.SSLContext] = ssl.SSLContext) -> ssl.SSLContext:
    """A TLS client of `kind` that takes 1.2 or better and verifies certificate and name unless told not to.

    Without a CA file the system's are believed, or those that SSL_CERT_FILE names. Raises AccessError.
    """
    context = kind(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if access.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif access.ca_file is None:
        context.load_default_certs()
    else:
        try:
            context.load_verify_locations(cafile=access.ca_file)
        except OSError as error:  # an SSLError is one too: a file without a certificate
            reason = error.strerror or "no PEM certificate in it"
            raise AccessError(
                f"cannot use the CA file {access.ca_file}: {reason}; name a PEM file with --ca-file"
            ) from error
    return context


def public_address(host: str, resolve: Resolve = socket.getaddrinfo) -> str | None:
    """An address of `host` that anybody on the internet could have; None for a host of one's own.

    Loopback, private, shared and link-local addresses are one's own; so is a name that leads nowhere, which
    fails later with a sentence of its own.
    """
    if host == "localhost" or host.endswith((".localhost", ".local")):
        return None
    try:
        found = resolve(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return None
    for *_, address in found:
        number = ipaddress.ip_address(str(address[0]).partition("%")[0])
        mapped = number.ipv4_mapped if isinstance(number, ipaddress.IPv6Address) else None
        if (mapped or number).is_global:
            return str(mapped or number)
    return None


def require_consent(host: str, *, allowed: bool, resolve: Resolve = socket.getaddrinfo) -> None:
    """Raises AccessError for a public host that nobody said may be loaded."""
    address = None if allowed else public_address(host, resolve)
    if address is not None:
        raise AccessError(
            f"{host} is a public host ({address}): load only a server you may load, and say so with "
            f"--allow-public-host or {PUBLIC_HOST_VARIABLE}=1"
        )


def require_below_cap(users: int, cap: int) -> None:
    """Raises AccessError above `cap` users at once, wherever the number came from."""
    if users > cap:
        raise AccessError(
            f"{users:,} users at once are above the cap of {cap:,}: if they are meant, raise it with "
            f"--users-cap {users} or {USERS_CAP_VARIABLE}={users}"
        )
