#!/bin/sh
# Licences, bans and sources of everything that is linked.
set -eu
cd "$(dirname "$0")/.."
exec cargo deny check licenses bans sources
