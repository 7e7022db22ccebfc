#!/usr/bin/env bash
# Tries what is in deploy/ and the commands in docs/ with a heliostat binary:
#
#   deploy/check.sh [BINARY]     (target/debug/heliostat)
#
# What needs a program that is not here is said and left out. HELIOSTAT_TOOLS names a Python virtual
# environment to use, and to keep, for schemathesis and Helm's engine.
set -euo pipefail
cd "$(dirname "$0")/.."
binary=$(realpath "${1:-target/debug/heliostat}")
work=$(mktemp -d)
server=
finish() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT

have() { command -v "$1" >/dev/null || { echo "SKIPPED: $1 is not installed"; return 1; }; }

echo "-- the unit"
if have systemd-analyze; then
    # The binary is not where the unit looks for it, and is not what is tried.
    sed "s|/usr/bin/heliostat|$binary|" deploy/systemd/heliostat.service >"$work/heliostat.service"
    systemd-analyze verify --man=no "$work/heliostat.service"
    systemd-analyze security --offline=true --threshold=20 "$work/heliostat.service" | tail -n 1
fi

echo "-- the Debian package"
if have dpkg-deb; then
    deploy/debian/build.sh "$binary" "$work"
    dpkg-deb --contents "$work"/*.deb | awk '{ print $6 }' | sort >"$work/files"
    for file in usr/bin/heliostat etc/heliostat/config.toml lib/systemd/system/heliostat.service \
        usr/share/man/man1/heliostat.1.gz usr/share/bash-completion/completions/heliostat \
        usr/share/zsh/vendor-completions/_heliostat usr/share/fish/vendor_completions.d/heliostat.fish; do
        grep -qx "./$file" "$work/files" || { echo "the package lacks $file"; exit 1; }
    done
    dpkg-deb --extract "$work"/*.deb "$work/installed"
    "$work/installed/usr/bin/heliostat" check --config "$work/installed/etc/heliostat/config.toml"
    if have lintian; then
        lintian --allow-root --fail-on error "$work"/*.deb
    fi
fi

echo "-- a server of the demonstration source"
for port in $(shuf -i 20000-29999 -n 20); do
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
done
cat >"$work/config.toml" <<TOML
[[upstream]]
name = "demo"
kind = "demo"
demo = { latency = "1ms", per_second = 1000000 }
rate_limit = { per_second = 1000000, burst = 1000000 }
[access.admin]
tokens = [{ env = "TOKEN_HASH" }]
TOML
"$binary" hash --token >"$work/token"
TOKEN=$(sed -n 's/^token: *//p' "$work/token")
TOKEN_HASH=$(sed -n 's/^hash: *//p' "$work/token")
export TOKEN TOKEN_HASH
export HELIOSTAT_SERVER__LISTEN=127.0.0.1:$port
"$binary" health 2>/dev/null && { echo "there is a server at port $port"; exit 1; }
"$binary" --config "$work/config.toml" 2>"$work/log" &
server=$!
for _ in $(seq 100); do
    "$binary" health 2>/dev/null && break
    kill -0 "$server" || { cat "$work/log"; exit 1; }
    read -rt 0.1 <> <(:) || true
done
"$binary" health

echo "-- commands in docs/"
mkdir "$work/bin"
# As the documents have it, but at the port of this server.
cat >"$work/bin/heliostat" <<SH
#!/bin/sh
if [ "\$1" = query ]; then set -- "\$@" --server http://127.0.0.1:$port; fi
exec "$binary" "\$@"
SH
chmod +x "$work/bin/heliostat"
for page in docs/operations.md docs/troubleshooting.md docs/migration.md docs/admin.md; do
    sed -n '/^ *```console$/,/^ *```$/s/^ *\$ //p' "$page" >"$work/commands"
    [ -s "$work/commands" ] || { echo "$page has no command"; exit 1; }
    while IFS= read -r command; do
        echo "\$ $command"
        if [[ $command == *promtool* ]] && ! have promtool; then continue; fi
        here=${command//127.0.0.1:7007/127.0.0.1:$port}
        PATH="$work/bin:$PATH" bash -euo pipefail -c "${here//\/tmp\//$work/}" >"$work/said" 2>&1 </dev/null ||
            { cat "$work/said"; exit 1; }
    done <"$work/commands"
done

echo "-- the API against its description"
python=
# The newest that runs: not every one on PATH does.
for candidate in python3.14 python3.13 python3.12 python3; do
    if "$candidate" --version >/dev/null 2>&1; then
        python=$candidate
        break
    fi
done
tools=${HELIOSTAT_TOOLS:-$work/tools}
# A virtual environment with the packages named, if they can be had within two minutes.
with_packages() {
    [ -n "$python" ] || { echo "SKIPPED: python3 is not installed"; return 1; }
    [ -x "$tools/bin/python" ] || "$python" -m venv "$tools" >/dev/null 2>&1 &&
        timeout 120 "$tools/bin/pip" install --quiet --disable-pip-version-check "$@" >"$work/pip" 2>&1 ||
        { echo "SKIPPED: $* cannot be had: $(tail -n 1 "$work/pip" 2>/dev/null)"; return 1; }
}
if with_packages "schemathesis==4.32.5"; then
    # 504 is not a fault of the server's where a request allows it a millisecond.
    cat >"$work/schemathesis.toml" <<TOML
[checks]
not_a_server_error.expected-statuses = ["2xx", "4xx", 504]
TOML
    # It leaves files where it runs.
    (cd "$work" && timeout 300 "$tools/bin/schemathesis" --config-file "$work/schemathesis.toml" run "http://127.0.0.1:$port/openapi.json" --no-color --seed 1 \
        --header "Authorization: Bearer $TOKEN" \
        --max-examples 40 --checks not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance \
        >"$work/said" 2>&1) || { cat "$work/said"; exit 1; }
    tail -n 6 "$work/said"
fi

echo "-- the chart"
# It needs Python 3.12.
if with_packages "helm-sdkpy==0.1.32" "PyYAML==6.0.3"; then
    "$tools/bin/python" deploy/helm/check.py "$binary"
fi
echo "-- done"
