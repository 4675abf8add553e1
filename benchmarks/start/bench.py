"""Seconds from `delaygrad train` to its first iteration, of several versions of delaygrad in turn.

python -m benchmarks.start.bench --sources src OLD/src --data-dir cifar --output FILE
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import tyro

from benchmarks.alternating import write
from delaygrad.records.spread import quartiles
from tests.commands import DELAYGRAD, reports, running, wait_until

COMMAND = "train --runtime distributed --stages 2 --log-every 1 --quiet"
CIFAR10 = "--data cifar10 --model resnet20 --batch-size 128 --data-dir"
TICKS_S = os.sysconf("SC_CLK_TCK")


def to_first_iteration(source: Path, options: str) -> tuple[float, float]:
    """Return the elapsed seconds and the CPU seconds of all processes until the first record."""
    with tempfile.TemporaryDirectory() as folder:
        words = [*COMMAND.split(), *options.split(), "--run-dir", f"{folder}/run"]
        start_s = time.perf_counter()
        with running("env", f"PYTHONPATH={source.resolve()}", *DELAYGRAD, *words) as process:
            wait_until(lambda: reports(Path(folder, "run")) or process.poll() is not None)
            if process.poll() is not None:
                sys.exit(f"the command has ended ({' '.join(words)})")
            return round(time.perf_counter() - start_s, 3), round(cpu_s(process.pid), 2)


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


def main(
    sources: tuple[Path, ...], output: Path, data_dir: tuple[Path, ...] = (), rounds: int = 5
) -> None:
    """Let versions and data sets take turns.

    Args:
        sources: folder ``src`` of each version.
        output: the record, as JSON.
        data_dir: folders with the files of CIFAR-10.
        rounds: turns of each.
    """
    cases = {"digits": ""} | {str(data): f"{CIFAR10} {data.resolve()}" for data in data_dir}
    found: dict[str, list[tuple[float, float]]] = {}
    loads = []
    for number in range(-1, rounds):  # the round before the first writes the byte code
        for case, options in cases.items():
            for source in sources[:: 1 if number % 2 else -1]:
                seconds = to_first_iteration(source, options)
                if number >= 0:
                    found.setdefault(f"{source}, {case}", []).append(seconds)
        loads.append(os.getloadavg()[0])
    rows = {}
    for name, pairs in found.items():
        elapsed_s, used_s = zip(*pairs, strict=True)
        rows[name] = {"elapsed_s": quartiles(elapsed_s, 3), "cpu_s": quartiles(used_s, 3)}
    write(output, load=loads, rows=rows)


if __name__ == "__main__":
    tyro.cli(main)
