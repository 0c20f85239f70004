#!/usr/bin/env bash
# Installs Chromium, in which the tests of pages run, unless it is there. Debian's package.
set -euo pipefail

if command -v chromium >/dev/null; then
    exit 0
fi
as_root=()
if [[ "$(id -u)" != 0 ]]; then
    as_root=(sudo --non-interactive)
fi
if ! command -v apt-get >/dev/null || ! "${as_root[@]}" true 2>/dev/null; then
    echo "The tests of the report need the command 'chromium', and this user cannot install it." >&2
    echo "Install it once, on Debian as root: apt-get install chromium" >&2
    exit 1
fi
echo "installing chromium, for the tests of the report"
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null
command -v chromium >/dev/null
