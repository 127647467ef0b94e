#!/bin/sh
# make-secrets.sh FOLDER: the secrets of a fleet, one a file, made at random; those that are there already stay as they are.
# For docker compose (which runs it by itself) and for deploy/kubernetes.
set -eu
umask 022
folder=$1
mkdir -p "$folder"
# 32 random bytes in the alphabet of URLs: a password, a token, and the form of key that Fernet takes.
random() { head -c 32 /dev/urandom | base64 | tr '+/' '-_' | tr -d '\n'; }
make() { test -s "$folder/$1" || { "$2" > "$folder/.$1" && mv "$folder/.$1" "$folder/$1"; }; }
plain() { random | tr -d '='; }
api_key() { printf 'aq_%s' "$(plain)"; }
# SeaweedFS reads its keys from a file of its own.
s3_identities() {
  printf '{"identities": [{"name": "aquatint", "credentials": [{"accessKey": "%s", "secretKey": "%s"}], "actions": ["Admin"]}]}' \
    "$(cat "$folder/s3-access-key")" "$(cat "$folder/s3-secret-key")"
}
make database-password plain
make node-token plain
make secret-key random
make api-key api_key
make grafana-password plain
make s3-access-key plain
make s3-secret-key plain
make s3-identities.json s3_identities
