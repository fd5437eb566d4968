"""Is what runs in this container well? Asks ULLAGE_HEALTH_URL; a command without one is judged by its end."""

from __future__ import annotations

import os
import sys
import urllib.request

ANSWER_S_MAX = 3.0


def main() -> int:
    """0 when the page answers in time and without an error, 1 when not. A proxy is never asked."""
    url = os.environ.get("ULLAGE_HEALTH_URL", "")
    if not url:
        return 0
    try:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        direct.open(url, timeout=ANSWER_S_MAX).close()
    except (OSError, ValueError) as error:
        print(f"{url}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
