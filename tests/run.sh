#!/usr/bin/env bash
# Everything that must hold: lint, format, types, unit tests, integration tests, tests on several hosts.
#   bash tests/run.sh            all of it (26 to 49 minutes on two cores, by their speed)
#   bash tests/run.sh --unit     without the integration tests and those on several hosts (which need root)
set -euo pipefail
cd "$(dirname "$0")/.."
unit_only=
[ "${1:-}" = --unit ] && unit_only=1 && shift
more="$PWD/tests/requirements.txt"
source launch/setup.sh
ruff check .
ruff format --check .
pyright --warnings
# Two at a time: much of a launch is waiting. A file's tests stay together, they share runs.
python -m pytest tests/unit -n 2 "$@"
[ -n "$unit_only" ] || python -m pytest tests/integration tests/multihost -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder "$@"
