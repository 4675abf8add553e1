#!/bin/sh
# All contests of throughput on this machine, one after the other; about ten minutes each.
# Usage: benchmarks/throughput/run.sh [options of delaygrad bench]
set -eu
cd "$(dirname "$0")"
mkdir -p results
for workload in resnet56 resnet110 gpt25m mlp; do
    "${PYTHON:-python}" -m delaygrad bench --workload "$workload" --rounds 5 --turn-s 5 \
        --output "results/$workload.json" --figure "results/$workload.png" "$@"
done
