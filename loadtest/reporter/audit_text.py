"""What the audit before the load found, and how the server was reached, as the report tells it. Pure."""

from __future__ import annotations

from loadtest.run_folder import Manifest


def audit_facts(manifest: Manifest) -> list[tuple[str, str]]:
    """Rows of the report's last table: what the client could carry, and whatever was not green."""
    rows = []
    if manifest.origin.is_unverified:
        rows.append(("TLS", "the certificate was NOT VERIFIED (--insecure): anybody may have answered"))
    if not manifest.audit:
        rows.append(("audit", "none was made before the load"))
    for check in manifest.audit:
        if check.level == "amber":
            rows.append(("caution", check.sentence))
        elif check.name == "echo":
            rows.append(("client", check.said))
    return rows


def access_doubts(manifest: Manifest) -> tuple[str, ...]:
    """What stands between any figure and a signature: a number of an unknown server is worth nothing."""
    if not manifest.origin.is_unverified:
        return ()
    return ("who answered (--insecure left the server's certificate unverified)",)
