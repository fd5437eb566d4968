#!/usr/bin/env bash
# Builds the image without a daemon or a registry and tries it: needs root, mmdebstrap and buildah.
#
# The base is a Debian made here; a release is built on the base that docker/Dockerfile names. BUILD_FLAGS go to
# buildah, for instance "--volume /etc/pip.conf:/etc/pip.conf:ro" where packages come from a mirror.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
store=(--root "$work/store" --runroot "$work/runroot" --storage-driver vfs)
trap 'buildah "${store[@]}" rm --all >/dev/null 2>&1 || true; rm -rf "$work"' EXIT

mmdebstrap --quiet --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$work/base.tar"
base=$(buildah "${store[@]}" from scratch)
buildah "${store[@]}" add --quiet "$base" "$work/base.tar" / >/dev/null
buildah "${store[@]}" commit --quiet "$base" localhost/base >/dev/null
buildah "${store[@]}" rm "$base" >/dev/null
rm "$work/base.tar"

# shellcheck disable=SC2086  # several flags
buildah "${store[@]}" bud --isolation chroot --format docker --ignorefile .dockerignore ${BUILD_FLAGS:-} \
    --build-arg BASE_IMAGE=localhost/base --file docker/Dockerfile --tag localhost/ullage .
image=$(buildah "${store[@]}" from localhost/ullage)

inside() { timeout 120 buildah "${store[@]}" run --isolation chroot "$image" -- "$@"; }

test "$(inside id -u)" = 10001
inside ullage estimate Qwen3-8B --gpu h100-80gb
inside python3 -c 'from loadtest.workers.native import IS_NATIVE; assert IS_NATIVE, "the reader in C is missing"'
inside sh -c '! command -v curl && ! test -e /opt/ullage/bin/pip && ! touch /opt/ullage/x 2>/dev/null'
# the twin is well, is loaded by a master and a worker, and the rows make a report
trial='
    set -e
    ullage twin --port 8431 & twin=$!
    export ULLAGE_HEALTH_URL=http://127.0.0.1:8431/health
    for _ in $(seq 100); do python /opt/ullage/healthcheck.py 2>/dev/null && break; sleep 0.2; done
    python /opt/ullage/healthcheck.py
    cd /work
    locust -f /opt/ullage/qwen.py --worker --master-host 127.0.0.1 --master-port 8432 >/dev/null 2>&1 &
    code=0
    locust -f /opt/ullage/qwen.py --master --master-bind-host 127.0.0.1 --master-bind-port 8432 \
        --expect-workers 1 --headless -H http://127.0.0.1:8431 -u 4 -r 4 -t 6s --only-summary || code=$?
    ullage report runs/* >/dev/null || true
    kill -INT $twin; wait $twin || true
    ls runs/*/report.html
    exit $code'
inside sh -c "$trial"

# once more as compose.yaml has it: a root file system that nobody can write
timeout 120 unshare --mount --propagation private bash -euc '
    root=$1
    mount --bind "$root" "$root"
    mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
    mount -t tmpfs -o uid=10001,gid=10001 tmpfs "$root/work/runs"
    mount --rbind /dev "$root/dev"
    mount -t proc proc "$root/proc"
    mount -o remount,bind,ro "$root"
    exec chroot --userspec=10001:10001 "$root" env -i PATH=/opt/ullage/bin:/usr/bin:/bin HOME=/tmp \
        MPLCONFIGDIR=/tmp/matplotlib PYTHONDONTWRITEBYTECODE=1 sh -c "! touch /work/x 2>/dev/null || exit 1; $2"
' - "$(buildah "${store[@]}" mount "$image")" "$trial"
echo "the image was built, and works as user 10001 on a read-only root"
