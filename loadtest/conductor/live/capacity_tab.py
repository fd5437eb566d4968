"""The "Capacity" tab of Locust's page: prediction, level, evidence and verdict so far, and the same as CSV.

Locust's page shows what it is given as text, and asks for it together with its own table.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

from flask import Blueprint, Response, request
from locust.web import WebUI

from loadtest.conductor.live.standing import Standing
from loadtest.conductor.live.standing_text import LEVEL_COLUMNS, capacity_rows, level_rows
from loadtest.exports import inert

KEY: Final = "capacity"
COLUMNS: Final = (("what", "Capacity"), ("figure", "So far"), ("evidence", "What it stands on"))
FILES: Final = (("capacity.csv", "Download capacity CSV"), ("levels.csv", "Download levels CSV"))


def add_capacity_tab(web_ui: WebUI, standing: Standing, base_path: str | None) -> None:
    """Before the page is served. `base_path` is Locust's --web-base-path."""
    app = web_ui.app
    assert app is not None
    web_ui.template_args |= {
        "extended_tabs": [{"title": "Capacity", "key": KEY}],
        "extended_tables": [
            {"key": KEY, "structure": [{"key": key, "title": title} for key, title in COLUMNS]}
        ],
        "extended_csv_files": [{"href": f"./{KEY}/{name}", "title": title} for name, title in FILES],
    }
    pages = Blueprint("ullage", __name__, url_prefix=f"{base_path or ''}/{KEY}")

    def capacity_csv() -> Response:
        return _csv("capacity.csv", [title for _, title in COLUMNS], capacity_rows(standing))

    def levels_csv() -> Response:
        return _csv("levels.csv", LEVEL_COLUMNS, level_rows(standing))

    def with_capacity(response: Response) -> Response:
        if request.endpoint != "locust.request_stats" or not response.is_json:
            return response
        rows = [
            {"what": _unbroken(what), "figure": _unbroken(figure), "evidence": why}
            for what, figure, why in capacity_rows(standing)
        ]
        told: dict[str, Any] = json.loads(response.get_data())
        told["extended_stats"] = [{"key": KEY, "data": rows}]
        # a new one: Locust keeps its own for the next who asks
        return Response(json.dumps(told), status=response.status_code, mimetype="application/json")

    for (name, _), page in zip(FILES, (capacity_csv, levels_csv), strict=True):
        pages.add_url_rule(f"/{name}", view_func=web_ui.auth_required_if_enabled(page))
    app.register_blueprint(pages)
    app.after_request(with_capacity)


def _unbroken(text: str) -> str:
    """Stays on one line in a narrow column."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _csv(name: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Response:
    text = io.StringIO()
    lines = csv.writer(text)
    lines.writerow(columns)
    lines.writerows([inert(value) for value in row] for row in rows)
    headers = {"Content-Disposition": f"attachment; filename={name}", "X-Content-Type-Options": "nosniff"}
    return Response(text.getvalue(), mimetype="text/csv", headers=headers)
