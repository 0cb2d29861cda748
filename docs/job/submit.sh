#!/usr/bin/env bash
# Sends a run to a Ray cluster, from a checkout of this project: docs/job/submit.sh http://HEAD:8265 /folder/on/the/head [sparcl's arguments]
# Every node needs Python and the packages of pyproject.toml, the head also the extra `cluster`; our code travels with the job.
set -euo pipefail
cd "$(dirname "$0")/../.."
address=${1:?"the address of the head's dashboard, such as http://10.0.0.1:8265"}
out=${2:?"an absolute folder on the head for the run folder: the job's own folder is removed at its end"}
shift 2
export RAY_USAGE_STATS_ENABLED=0
exec ray job submit --address "$address" \
    --runtime-env-json '{"excludes": ["/.venv", "/.git", "/tests", "/benchmarks", "/runs"]}' \
    --working-dir . -- python -m simulations run "${@:-split-digits}" --ray-address auto --out "$out"
