#!/usr/bin/env bash
# Builds a Debian package from an existing binary:
#
#   HELIOSTAT_COMMIT=$(git rev-parse --short HEAD) cargo build --profile dist --locked --features otlp
#   deploy/debian/build.sh [BINARY [FOLDER]]     (target/dist/heliostat, .)
#
# It needs dpkg-deb. The package is reproducible from the same binary if SOURCE_DATE_EPOCH is set.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
binary=${1:-$top/target/dist/heliostat}
out=${2:-.}
version=$("$binary" --version | cut -d ' ' -f 2)
arch=$(dpkg --print-architecture)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

put() { install -D -m "$1" "$2" "$root/$3"; }
# Files that the binary generates.
made() { "$binary" "${@:2}" >"$root.made" && put 644 "$root.made" "$1" && rm "$root.made"; }

put 755 "$binary" usr/bin/heliostat
strip --strip-unneeded "$root/usr/bin/heliostat" 2>/dev/null || true
# Invented data has no place on a server: the package's upstream is a Prometheus on the same machine.
sed -e 's/^name = "demo" /name = "prom" /; s/^kind = "demo" .*/kind = "prometheus"             # "mirror", "prometheus" and others/' \
    -e 's/^# urls = \["/urls = ["/; /^demo = {/d' "$top/config.toml" >"$root.made"
put 644 "$root.made" etc/heliostat/config.toml
rm "$root.made"
put 644 "$top/deploy/systemd/heliostat.service" lib/systemd/system/heliostat.service
made usr/share/man/man1/heliostat.1 man
gzip -9n "$root/usr/share/man/man1/heliostat.1"
made usr/share/bash-completion/completions/heliostat completions bash
made usr/share/zsh/vendor-completions/_heliostat completions zsh
made usr/share/fish/vendor_completions.d/heliostat.fish completions fish
docs=usr/share/doc/heliostat
for file in "$top"/docs/*.md; do put 644 "$file" "$docs/$(basename "$file")"; done
put 644 "$top/deploy/prometheus/alerts.yml" "$docs/examples/alerts.yml"
put 644 "$top/deploy/grafana/heliostat.json" "$docs/examples/heliostat.json"
put 644 "$here/copyright" "$docs/copyright"
put 644 "$top/CHANGELOG.md" "$docs/NEWS.md"
gzip -9n "$root/$docs/NEWS.md"
built=$(date -uR -d "@${SOURCE_DATE_EPOCH:-$(date +%s)}")
sed -e "s/@VERSION@/$version/; s/@DATE@/$built/" "$here/changelog" >"$root/$docs/changelog"
gzip -9n "$root/$docs/changelog"
chmod 644 "$root/$docs/changelog.gz"

for script in postinst prerm postrm; do put 755 "$here/$script" "DEBIAN/$script"; done
echo /etc/heliostat/config.toml >"$root/DEBIAN/conffiles"
chmod 644 "$root/DEBIAN/conffiles"
size=$(du -sk --exclude=DEBIAN "$root" | cut -f 1)
sed -e "s/@VERSION@/$version/; s/@ARCH@/$arch/; s/@SIZE@/$size/" "$here/control" >"$root/DEBIAN/control"
(cd "$root" && find usr lib -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
chmod 644 "$root/DEBIAN/md5sums"
chmod -R u+rwX,go+rX,go-w "$root"
dpkg-deb --root-owner-group --build "$root" "$out/heliostat_${version}_$arch.deb"
