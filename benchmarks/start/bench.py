"""Seconds from `delaygrad train` to its first iteration, of several versions of delaygrad in turn.

python benchmarks/start/bench.py --sources src OLD/src --data-dir cifar --output FILE
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMAND = "-m delaygrad train --runtime distributed --stages 2 --log-every 1 --quiet"
CIFAR10 = "--data cifar10 --model resnet20 --batch-size 128 --data-dir"
TICKS_S = os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", nargs="+", type=Path, required=True, help="src of a version")
    parser.add_argument("--data-dir", nargs="*", type=Path, default=[], help="CIFAR-10's files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    cases = {"digits": ""} | {str(data): f"{CIFAR10} {data.resolve()}" for data in asked.data_dir}
    found: dict[str, list[tuple[float, float]]] = {}
    loads = []
    for number in range(-1, asked.rounds):  # the round before the first writes the byte code
        for case, options in cases.items():
            for source in asked.sources[:: 1 if number % 2 else -1]:
                seconds = to_first_iteration(source, options)
                print(f"round {number}: {source}, {case}: {seconds}", flush=True)
                if number >= 0:
                    found.setdefault(f"{source}, {case}", []).append(seconds)
        loads.append(os.getloadavg()[0])
    rows = {
        name: {"elapsed_s": summary([s[0] for s in pairs]), "cpu_s": summary([s[1] for s in pairs])}
        for name, pairs in found.items()
    }
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "load": loads}
    asked.output.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


def to_first_iteration(source: Path, options: str) -> tuple[float, float]:
    """Return the elapsed seconds and the CPU seconds of all processes until the first record."""
    with tempfile.TemporaryDirectory() as folder:
        records = Path(folder) / "run" / "records.jsonl"
        words = [*COMMAND.split(), *options.split(), "--run-dir", str(records.parent)]
        environment = {**os.environ, "PYTHONPATH": str(source.resolve())}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        start_s = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *words], env=environment, cwd=folder, start_new_session=True
        )
        try:
            while not (records.exists() and '"training"' in records.read_text()):
                if process.poll() is not None:
                    sys.exit(f"the command has ended ({' '.join(words)})")
                time.sleep(0.01)
            return round(time.perf_counter() - start_s, 3), round(cpu_s(process.pid), 2)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def cpu_s(session: int) -> float:
    """Return the CPU seconds of a session's processes, with those that have ended."""
    used = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session:
            used += sum(map(int, fields[11:15]))
    return used / TICKS_S


def summary(values: list[float]) -> dict[str, float]:
    """Return the median and the quartiles."""
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": median, "lower_quartile": low, "upper_quartile": high}


if __name__ == "__main__":
    main()
