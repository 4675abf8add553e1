#!/bin/sh
# One contest of stages that sleep 30 ms forward and 60 ms backward for each K.
# Usage: benchmarks/sleeping_stages/run.sh [options of delaygrad bench]
set -eu
cd "$(dirname "$0")"
mkdir -p results
for stages in 2 4 8 16; do
    "${PYTHON:-python}" -m delaygrad bench --workload sleep --stages "$stages" \
        --contestants bp gpipe-m16 1f1b-m4 1f1b-m8 1f1b-m16 1f1b-m32 interleaved-m16 ddg ddg-slack1 \
        --output "results/k$stages.json" --figure "results/k$stages.png" "$@"
done
