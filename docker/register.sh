#!/bin/sh
# Register the node keys that are named, at the SuperLink "demo" of the Flower configuration. One that is registered
# already is left as it is, so that "docker compose up" may be repeated.
set -eu

mkdir -p "$FLWR_HOME"
cp /flower.toml "$FLWR_HOME/config.toml"
for key in "$@"; do
  if answer=$(flwr supernode register "$key" demo 2>&1); then
    echo "$key is registered"
  else
    case $answer in
      *"already in use"*) echo "$key was registered before" ;;
      *) echo "$answer" >&2; exit 1 ;;
    esac
  fi
done
