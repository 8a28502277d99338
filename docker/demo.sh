#!/usr/bin/env bash
# Make keys, start the federation of compose.yml, make a run, leave the results in docker/demo/results, and stop it.
# Arguments go to "hyperlora run", for example: docker/demo.sh -c federation.rounds=10
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
export PATH="$PWD/../.venv/bin:$PATH" COMPOSE_PROJECT_NAME=hyperlora

sites=(site-0 site-1 site-2)
clients=(clean-0 noisy-0 rotated-0)
mkdir -p demo/{superlink,results,server-state,flwr,keys}

let_in() {  # make a key and put it on a list
  [[ -e $1 ]] && return
  hyperlora certs node "$1"
  hyperlora certs allow "$2" "$3" "$1.pub"
}

[[ -e demo/tls/server.pem ]] || hyperlora certs server demo/tls --host superlink --host localhost --host 127.0.0.1
for index in "${!sites[@]}"; do
  site=${sites[index]}
  mkdir -p "demo/data/$site" "demo/state/$site"
  let_in "demo/keys/$site" demo/allowed-clients.json "${clients[index]}"
  let_in "demo/keys/peer-$index" demo/peers.json "${clients[index]}"
done
for name in server "${sites[@]}"; do
  [[ -e demo/keys/superexec-$name ]] || (umask 077 && head -c 32 /dev/urandom > "demo/keys/superexec-$name")
done
cat > demo/flwr/config.toml <<END
[superlink.demo]
address = "127.0.0.1:8000"
root-certificates = "$PWD/demo/tls/ca.crt"
END

# Secrets are files of this user, so the containers run as this user; root hands them to the images' own user.
HYPERLORA_USER="$(id -u):$(id -g)"
if [[ $(id -u) == 0 ]]; then
  HYPERLORA_USER=49999:49999
  chown -R "$HYPERLORA_USER" demo
  chown 0:0 demo/tls/ca.key  # signs certificates; no container needs it
fi
export HYPERLORA_USER

trap 'docker compose down --timeout 20' EXIT
docker compose build
docker compose up --detach
./probe.sh

results=demo-$(date +%Y%m%d-%H%M%S)
FLWR_HOME="$PWD/demo/flwr" hyperlora run .. --superlink demo --output-dir "/results/$results" \
  -c federation.allowed-clients=/run/secrets/allowed-clients.json \
  -c data.clients-per-domain=1 -c data.unseen-fraction=0.0 -c federation.min-clients=3 \
  -c federation.clients-per-round=3 -c federation.rounds=3 "$@"
echo "results: $PWD/demo/results/$results"
