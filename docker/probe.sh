#!/usr/bin/env bash
# While the federation of compose.yml is up: from inside each site, try to reach the other sites, by name and by address,
# the server's app, and the world. Ends with 1 where a site reaches more than it should. docker/demo.sh does this first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
export COMPOSE_PROJECT_NAME=${COMPOSE_PROJECT_NAME:-hyperlora}
sites=(site-0 site-1 site-2)

addresses() {  # of a service's container in all of its networks
  docker inspect --format '{{range .NetworkSettings.Networks}}{{println .IPAddress}}{{end}}' "$(docker compose ps --quiet "$1")"
}

status=0
for site in "${sites[@]}"; do
  neighbours=(serverapp:9094)
  for other in "${sites[@]}"; do
    [[ $other == "$site" ]] && continue
    neighbours+=("$other:9094" "$other-app:9094")
    for address in $(addresses "$other"); do neighbours+=("$address:9094"); done
  done
  outside=("${PROBE_OUTSIDE:-example.org:443}")
  echo "$site, which talks to the server:"
  docker compose exec -T "$site" python - may=superlink:8000 "${neighbours[@]}" "${outside[@]}" < probe.py || status=1
  echo "$site-app, which sees the data:"
  docker compose exec -T "$site-app" python - "may=$site:9094" superlink:8000 "${neighbours[@]}" "${outside[@]}" < probe.py || status=1
done
exit $status
