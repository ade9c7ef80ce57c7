#!/bin/sh
# Makes the secrets that compose.yaml mounts, in ./secrets, each once: what is there already stays as it is.
# HYPERLEAP_API_KEY in the environment is the vendor key; without it the stand-in's is taken, for a demo.
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p secrets # nobody else of this machine enters it, so that its files may be read by the containers' users

random() { od -An -v -tx1 -N32 /dev/urandom | tr -d ' \n'; }

keep() {
    [ -s "secrets/$1" ] || printf '%s\n' "$2" >"secrets/$1"
    chmod 444 "secrets/$1"
}

for name in pepper signing-key admin-token postgres-password grafana-password; do
    keep "$name" "$(random)"
done
keep ledger-url "postgresql://gateway:$(cat secrets/postgres-password)@postgres:5432/gateway"
keep hyperleap-api-key "${HYPERLEAP_API_KEY:-sim-key}"
echo "secrets are in $(pwd)/secrets; the password of Grafana's user admin is in grafana-password"
