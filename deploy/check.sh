#!/usr/bin/env bash
# Checks the contents of deploy/ and runs the commands in the documents with a heliostat binary:
#
#   deploy/check.sh [BINARY]     (target/debug/heliostat)
#
# Checks that need a missing program are reported as SKIPPED. HELIOSTAT_TOOLS names a Python virtual
# environment to use, and to keep, for schemathesis and Helm's engine.
set -euo pipefail
cd "$(dirname "$0")/.."
binary=$(realpath "${1:-target/debug/heliostat}")
work=$(mktemp -d)
server=
store=
finish() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    [ -z "$store" ] || kill "$store" 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT

have() { command -v "$1" >/dev/null || { echo "SKIPPED: $1 is not installed"; return 1; }; }

echo "-- the unit"
if have systemd-analyze; then
    # The binary is not installed; and the lines that are commented out are checked as well.
    sed "s|/usr/bin/heliostat|$binary|; s/^#LoadCredential/LoadCredential/" deploy/systemd/heliostat.service \
        >"$work/heliostat.service"
    [ "$(grep -c '^LoadCredential=' "$work/heliostat.service")" = 2 ]
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
        grep -qx "./$file" "$work/files" || { echo "the package does not contain $file"; exit 1; }
    done
    dpkg-deb --extract "$work"/*.deb "$work/installed"
    # Its store is a Prometheus on this machine, which may be absent: that is 1, a wrong file 2.
    status=0
    "$work/installed/usr/bin/heliostat" check --config "$work/installed/etc/heliostat/config.toml" >"$work/said" 2>&1 ||
        status=$?
    cat "$work/said"
    [ "$status" -le 1 ] && grep -q '^prom  *prometheus ' "$work/said" && ! grep -q demo "$work/said"
    if have lintian; then
        lintian --allow-root --fail-on error "$work"/*.deb
    fi
fi

echo "-- the StackPack"
if have zip; then
    DATA_SOURCE=other DATA_SOURCE_NAME="Other one" deploy/stackstate/pack.sh "$work" >"$work/archive"
    archive=$(cat "$work/archive")
    mkdir "$work/stackpack"
    (cd "$work/stackpack" && unzip -q "$archive")
    diff <(cd deploy/stackstate/stackpack && find . -type f | sort) <(cd "$work/stackpack" && find . -type f | sort)
    if grep -rE "data-source:prom|query\('Heliostat'|@VERSION@" "$work/stackpack"; then
        echo "the StackPack refers to another data source or version"
        exit 1
    fi
    grep -rq "data-source:other" "$work/stackpack" && grep -rq "query('Other one'" "$work/stackpack"
    first=$(sha256sum <"$archive")
    DATA_SOURCE=other DATA_SOURCE_NAME="Other one" deploy/stackstate/pack.sh "$work" >/dev/null
    [ "$first" = "$(sha256sum <"$archive")" ] || { echo "the StackPack is not reproducible"; exit 1; }
fi

# A port that nobody listens on.
free_port() {
    local port
    for port in $(shuf -i 20000-29999 -n 20); do
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
    done
    return 1
}
# Waits for a command to succeed, for 10 s at most.
wait_for() {
    for _ in $(seq 100); do
        "$@" >/dev/null 2>&1 && return
        read -rt 0.1 <> <(:) || true
    done
    return 1
}

echo "-- a Prometheus that scrapes itself"
store_port=$(free_port)
if have prometheus; then
    cat >"$work/prometheus.yml" <<YAML
global: { scrape_interval: 1s }
scrape_configs:
  - job_name: prometheus
    static_configs: [{ targets: ["127.0.0.1:$store_port"] }]
YAML
    prometheus --config.file="$work/prometheus.yml" --storage.tsdb.path="$work/tsdb" \
        --web.listen-address="127.0.0.1:$store_port" >"$work/prometheus.log" 2>&1 &
    store=$!
    scraped() { curl -sf "http://127.0.0.1:$store_port/api/v1/query?query=up" | grep -q '"1"'; }
    wait_for scraped || { cat "$work/prometheus.log"; exit 1; }
fi

echo "-- a server of the demonstration source and that Prometheus"
port=$(free_port)
cat >"$work/config.toml" <<TOML
[[upstream]]
name = "demo"
kind = "demo"
demo = { latency = "1ms", per_second = 1000000 }
rate_limit = { per_second = 1000000, burst = 1000000 }
[[upstream]]
name = "prom"
kind = "prometheus"
urls = ["http://127.0.0.1:$store_port"]
[access.admin]
tokens = [{ env = "TOKEN_HASH" }]
TOML
"$binary" hash --token >"$work/token"
TOKEN=$(sed -n 's/^token: *//p' "$work/token")
TOKEN_HASH=$(sed -n 's/^hash: *//p' "$work/token")
export TOKEN TOKEN_HASH
export HELIOSTAT_SERVER__LISTEN=127.0.0.1:$port
"$binary" health 2>/dev/null && { echo "another server already listens on port $port"; exit 1; }
"$binary" --config "$work/config.toml" 2>"$work/log" &
server=$!
wait_for "$binary" health || { cat "$work/log"; exit 1; }

echo "-- commands in the documents"
mkdir "$work/bin"
# The commands as in the documents, but with the port of this server.
cat >"$work/bin/heliostat" <<SH
#!/bin/sh
if [ "\$1" = query ]; then set -- "\$@" --server http://127.0.0.1:$port; fi
exec "$binary" "\$@"
SH
chmod +x "$work/bin/heliostat"
# The commands of a page, one a line: what follows "$ " in a console block, and the lines after "> ", joined by
# carriage returns.
commands_of() {
    awk '/^ *```console$/ { inside = 1; next }
         /^ *```/ { if (inside && command != "") print command; inside = 0; command = ""; next }
         !inside { next }
         { sub(/^ */, "") }
         /^\$ / { if (command != "") print command; command = substr($0, 3); next }
         /^> / { command = command "\r" substr($0, 3); next }
         { if (command != "") print command; command = "" }' "$1"
}
for page in README.md docs/operations.md docs/troubleshooting.md docs/stackstate.md docs/migration.md docs/admin.md; do
    commands_of "$page" >"$work/commands"
    [ -s "$work/commands" ] || { echo "$page has no command"; exit 1; }
    while IFS= read -r command; do
        command=${command//$'\r'/$'\n'}
        echo "\$ $command"
        # The server is running already; another is not needed.
        case $command in "cargo run --release" | "heliostat --config config.toml") continue ;; esac
        if [[ $command == *promtool* ]] && ! have promtool; then continue; fi
        if [[ $command == *"zip "* || $command == *pack.sh* ]] && ! have zip; then continue; fi
        if [[ $command == *prom* && $command != *promtool* && -z $store ]]; then
            echo "SKIPPED: prometheus is not installed"
            continue
        fi
        here=${command//cargo run --release --/heliostat}
        here=${here//127.0.0.1:7007/127.0.0.1:$port}
        PATH="$work/bin:$PATH" bash -euo pipefail -c "${here//\/tmp\//$work/}" >"$work/said" 2>&1 </dev/null ||
            { cat "$work/said"; exit 1; }
    done <"$work/commands"
done

echo "-- the files of Docker Compose"
status=0
MIRROR_API_KEY=k "$binary" check --config deploy/compose/heliostat.toml >"$work/said" 2>&1 || status=$?
# 1: there is no host "prometheus" here.
[ "$status" = 1 ] && grep -q '^demo .*ok$' "$work/said" || { cat "$work/said"; exit 1; }
if have promtool; then
    cp deploy/compose/prometheus.yml deploy/prometheus/alerts.yml "$work"
    promtool check config "$work/prometheus.yml"
fi

echo "-- the API against its description"
python=
# The newest that runs; not all on PATH do.
for candidate in python3.14 python3.13 python3.12 python3; do
    if "$candidate" --version >/dev/null 2>&1; then
        python=$candidate
        break
    fi
done
tools=${HELIOSTAT_TOOLS:-$work/tools}
# Installs the named packages into a virtual environment, if that succeeds within two minutes.
with_packages() {
    [ -n "$python" ] || { echo "SKIPPED: python3 is not installed"; return 1; }
    [ -x "$tools/bin/python" ] || "$python" -m venv "$tools" >/dev/null 2>&1 &&
        timeout 120 "$tools/bin/pip" install --quiet --disable-pip-version-check "$@" >"$work/pip" 2>&1 ||
        { echo "SKIPPED: $* cannot be installed: $(tail -n 1 "$work/pip" 2>/dev/null)"; return 1; }
}
if with_packages "schemathesis==4.32.5"; then
    # 504 is not an error of the server if the request allows a millisecond only.
    cat >"$work/schemathesis.toml" <<TOML
[checks]
not_a_server_error.expected-statuses = ["2xx", "4xx", 504]
TOML
    # It leaves files in its working folder.
    (cd "$work" && timeout 300 "$tools/bin/schemathesis" --config-file "$work/schemathesis.toml" run "http://127.0.0.1:$port/openapi.json" --no-color --seed 1 \
        --header "Authorization: Bearer $TOKEN" \
        --max-examples 40 --checks not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance \
        >"$work/said" 2>&1) || { cat "$work/said"; exit 1; }
    tail -n 6 "$work/said"
fi

echo "-- the chart"
# It asks for Python 3.12, and works with 3.11.
if with_packages --ignore-requires-python "helm-sdkpy==0.1.32" "PyYAML==6.0.3"; then
    "$tools/bin/python" deploy/helm/check.py "$binary"
    find deploy/compose .github -name '*.y*ml' -exec "$tools/bin/python" -c '
import sys, yaml
for path in sys.argv[1:]:
    assert yaml.safe_load(open(path)), path' {} +
fi
echo "-- done"
