"""A board as frozen values -> the JSON that Grafana imports (classic schema, so 10 and later read it)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from panels import Annotation, Board, Panel, Query, Row, Variable

SCHEMA_VERSION: Final = 39
COLUMNS: Final = 24
TAG: Final = "ullage"
DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
PALETTE: Final = "palette-classic"
"""By a line's place: its first hues differ as far as hues can. By name, two servers may get one colour."""
SOFT_MAX: Final = {"none": 1, "percentunit": 0.1, "suffix:/s": 0.1}
"""How high an axis is at least where all is 0, by unit; Grafana would draw it to 100 of anything."""


def board_json(board: Board) -> dict[str, Any]:
    return {
        "annotations": {"list": [_annotation(one) for one in board.annotations]},
        "description": board.about,
        "editable": True,
        "graphTooltip": 1,
        "id": None,
        "links": [_links()],
        "panels": list(_panels(board.rows)),
        "refresh": "10s",
        "schemaVersion": SCHEMA_VERSION,
        "tags": [TAG],
        "templating": {"list": [_datasource(), *(_variable(one) for one in board.variables)]},
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "title": board.title,
        "uid": board.uid,
        "version": 1,
    }


def _links() -> dict[str, Any]:
    """To the other boards, with the same choices and the same time."""
    return {
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
        "tags": [TAG],
        "targetBlank": False,
        "title": "Boards",
        "type": "dashboards",
    }


def _datasource() -> dict[str, Any]:
    return {"label": "Data source", "name": "datasource", "query": "prometheus", "type": "datasource"}


def _variable(one: Variable) -> dict[str, Any]:
    query = f"label_values({one.selector}, {one.label or one.name})"
    return {
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "datasource": DATASOURCE,
        "definition": query,
        "includeAll": True,
        "label": one.title,
        "multi": True,
        "name": one.name,
        "query": {"query": query, "refId": one.name},
        "refresh": 2,  # whenever the time range changes: servers come and go
        "sort": 1,
        "type": "query",
    }


def _annotation(one: Annotation) -> dict[str, Any]:
    return {
        "datasource": DATASOURCE,
        "enable": True,
        "expr": one.expr,
        "iconColor": one.colour,
        "name": one.name,
        "step": "10s",  # Grafana would look once a minute, and the expressions look back 30 s
        "titleFormat": one.title,
        "useValueForTime": False,
    }


def _panels(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Left to right, a new line where the width is used up; a line is as high as its highest panel."""
    number = y = 0
    for row in rows:
        number += 1
        at = {"h": 1, "w": COLUMNS, "x": 0, "y": y}
        yield {
            "collapsed": False,
            "gridPos": at,
            "id": number,
            "panels": [],
            "title": row.title,
            "type": "row",
        }
        x, y, highest = 0, y + 1, 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y, highest = 0, y + highest, 0
            number += 1
            at = {"h": panel.height, "w": panel.width, "x": x, "y": y}
            yield {"gridPos": at, "id": number} | _panel(panel)
            x, highest = x + panel.width, max(highest, panel.height)
        y += highest


def _panel(panel: Panel) -> dict[str, Any]:
    kinds = {"timeseries": _timeseries, "stat": _stat, "table": _table}
    shape: dict[str, Any] = kinds[panel.kind](panel)
    return {
        "datasource": DATASOURCE,
        "description": panel.about,
        "targets": [_target(panel, at, query) for at, query in enumerate(panel.queries)],
        "title": panel.title,
        "type": panel.kind,
    } | shape


def _target(panel: Panel, at: int, query: Query) -> dict[str, Any]:
    target: dict[str, Any] = {
        "datasource": DATASOURCE,
        "expr": query.expr,
        "legendFormat": query.legend or "__auto",
        "refId": chr(ord("A") + at),
    }
    if panel.kind == "table":
        target |= {"format": "table", "instant": True, "range": False}
    return target


def _defaults(panel: Panel, colour: Mapping[str, Any]) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "color": dict(colour),
        "noValue": panel.no_data,
        "thresholds": {
            "mode": "absolute",
            "steps": [{"color": name, "value": value} for name, value in panel.thresholds],
        },
        "unit": panel.unit,
    }
    if panel.decimals is not None:
        defaults["decimals"] = panel.decimals
    elif panel.unit == "none" and panel.kind == "timeseries":
        defaults["decimals"] = 0  # a count: no line of the grid at half a request
    if panel.min_value is not None:
        defaults["min"] = panel.min_value
    return defaults


def _timeseries(panel: Panel) -> dict[str, Any]:
    custom: dict[str, Any] = {
        "drawStyle": "line",
        "fillOpacity": 40 if panel.is_stacked else 8,
        "lineWidth": 1,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"group": "A", "mode": "normal" if panel.is_stacked else "none"},
    }
    if panel.unit in SOFT_MAX:
        custom["axisSoftMax"] = SOFT_MAX[panel.unit]
    return {
        "fieldConfig": {
            "defaults": _defaults(panel, {"mode": PALETTE}) | {"custom": custom},
            "overrides": [_override(query) for query in panel.queries if query.colour],
        },
        "options": {
            "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def _override(query: Query) -> dict[str, Any]:
    properties: list[dict[str, Any]] = [
        {"id": "color", "value": {"fixedColor": query.colour, "mode": "fixed"}},
    ]
    if query.is_limit:
        properties += [
            {"id": "custom.lineStyle", "value": {"dash": [10, 10], "fill": "dash"}},
            {"id": "custom.lineWidth", "value": 2},
            {"id": "custom.fillOpacity", "value": 0},
        ]
    if query.on_right:
        properties += [{"id": "custom.axisPlacement", "value": "right"}, {"id": "unit", "value": "none"}]
    return {"matcher": {"id": "byName", "options": query.legend}, "properties": properties}


def _stat(panel: Panel) -> dict[str, Any]:
    return {
        "fieldConfig": {"defaults": _defaults(panel, {"mode": "thresholds"}), "overrides": []},
        "options": {
            "colorMode": "value",
            "graphMode": "none",  # a graph would lie under the number
            "justifyMode": "auto",
            "orientation": "auto",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "textMode": "auto",
        },
    }


def _table(panel: Panel) -> dict[str, Any]:
    columns = panel.columns or {}
    return {
        "fieldConfig": {"defaults": _defaults(panel, {"mode": "thresholds"}), "overrides": []},
        "options": {"cellHeight": "sm", "showHeader": True},
        "transformations": [
            {
                "id": "organize",
                "options": {
                    "includeByName": dict.fromkeys(columns, True),
                    "indexByName": {name: at for at, name in enumerate(columns)},
                    "renameByName": dict(columns),
                },
            }
        ],
    }
