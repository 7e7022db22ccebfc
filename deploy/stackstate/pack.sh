#!/usr/bin/env bash
# Packs the StackPack, a zip archive, into heliostat-VERSION.sts:
#
#   deploy/stackstate/pack.sh [FOLDER]     (.)
#
# It needs zip. VERSION is that of Cargo.toml. DATA_SOURCE and DATA_SOURCE_NAME set another data source than "prom" and
# "Heliostat". The same contents give the same archive.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$(realpath "${1:-.}")
source=${DATA_SOURCE:-prom}
name=${DATA_SOURCE_NAME:-Heliostat}
for value in "$source" "$name"; do
    [[ $value =~ ^[A-Za-z0-9._\ -]+$ ]] || { echo "a data source may have letters, digits, ' ', '.', '_', '-': $value" >&2; exit 1; }
done
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$here/../../Cargo.toml" | head -n 1)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cp -R "$here/stackpack/." "$work"
sed -i "s/@VERSION@/$version/" "$work/stackpack.conf"
find "$work/provisioning" "$work/resources" -type f ! -name '*.png' -exec \
    sed -i "s/urn:stackpack:heliostat:data-source:prom/urn:stackpack:heliostat:data-source:$source/g
            s/query('Heliostat'/query('$name'/g; s/\`Heliostat\`/\`$name\`/g" {} +
find "$work" -exec touch -d 2026-01-01T00:00:00Z {} +
find "$work" -type f -exec chmod 644 {} +
archive=$out/heliostat-$version.sts
rm -f "$archive"
(cd "$work" && find . -type f | LC_ALL=C sort | TZ=UTC zip -q -X -@ "$work.zip")
mv "$work.zip" "$archive"
echo "$archive"
