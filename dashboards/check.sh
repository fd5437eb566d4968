#!/bin/sh
# dashboards/check.sh PYTHON: asks a real Prometheus what the boards ask; skips, and says so, where there is none.
set -eu
if ! command -v prometheus >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update --quiet >/dev/null &&
        apt-get install --yes --quiet --no-install-recommends prometheus prometheus-alertmanager >/dev/null || true
fi
if ! command -v prometheus >/dev/null; then
    echo "SKIPPED: the boards were not asked of a Prometheus, for there is none: apt-get install prometheus" >&2
    exit 0
fi
promtool check rules dashboards/rules/*.yml >/dev/null
promtool check config --syntax-only docker/prometheus/prometheus.yml >/dev/null
promtool test rules tests/dashboards/rules_test.yml >/dev/null
if command -v amtool >/dev/null; then
    amtool check-config docker/alertmanager/alertmanager.yml >/dev/null
else
    echo "skipped: alertmanager.yml was not checked: apt-get install prometheus-alertmanager" >&2
fi
exec "$1" -B dashboards/check.py
