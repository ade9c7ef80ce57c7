#!/bin/sh
# Makes the secrets that compose.yaml mounts, in ./secrets, each once: what is there already stays as it is.
# HYPERLEAP_API_KEY in the environment is the vendor key; without it the stand-in's is taken, for a demo.
#
# Compose mounts a file with the owner and mode that it has. Run as root, this gives each to the one user of a container
# who reads it, and to nobody else. Run by anybody else, it can only let every user in the containers read them, which
# `hyperleap-gateway check --production` calls unsafe; run it again as root to close them. On the machine itself the
# directory is closed to others either way.
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p secrets

random() { od -An -v -tx1 -N32 /dev/urandom | tr -d ' \n'; }

keep() { # name, the user who reads it, content
    [ -s "secrets/$1" ] || printf '%s\n' "$3" >"secrets/$1"
    if [ "$(id -u)" = 0 ]; then
        chmod 400 "secrets/$1"
        chown "$2" "secrets/$1"
    else
        chmod 444 "secrets/$1"
    fi
}

gateway=65532 valkey=999 postgres=70 grafana=472 # users of the images

for name in pepper signing-key admin-token; do
    keep "$name" "$gateway" "$(random)"
done
keep valkey.conf "$valkey" "requirepass $(random)"
keep redis-url "$gateway" "redis://:$(sed -n 's/^requirepass //p' secrets/valkey.conf)@valkey:6379/0"
keep postgres-password "$postgres" "$(random)"
keep ledger-url "$gateway" "postgresql://gateway:$(cat secrets/postgres-password)@postgres:5432/gateway"
keep grafana-password "$grafana" "$(random)"
keep hyperleap-api-key "$gateway" "${HYPERLEAP_API_KEY:-sim-key}"
echo "secrets are in $(pwd)/secrets; the password of Grafana's user admin is in grafana-password"
