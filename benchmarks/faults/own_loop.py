"""Kill examples/own_loop.py under torchrun at random moments, and continue it; see README.md.

Run: python -m benchmarks.faults.own_loop --output benchmarks/faults/results/own_loop.json
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import tyro

from benchmarks.alternating import write

PROGRAM = Path(__file__).parents[2] / "examples" / "own_loop.py"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node")
ENDS = {2: 300, 3: 400}  # stages, and the iterations after which a run with them ends
LIMIT_S = 300.0


def start(stages: int, folder: Path) -> subprocess.Popen[str]:
    """Start a run, or continue it, with a process for each stage."""
    length = ["--iterations", str(ENDS[stages]), "--save-every", "20"]
    words = [*TORCHRUN, str(stages), str(PROGRAM), "--folder", str(folder), *length]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env=environment)


def digest(process: subprocess.Popen[str]) -> str:
    """Wait for the end of a run; return the checksum of the whole model, loaded from it."""
    out, err = process.communicate(timeout=LIMIT_S)
    found = re.search(r"sha256 of the parameters: (\w{64})", out)
    if process.returncode or found is None:
        raise SystemExit(f"a run has failed:\n{err}")
    return found[1]


def family(pid: int) -> list[int]:
    """Return a process and all below it."""
    below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(found for child in below for found in family(int(child)))]


def kill(process: subprocess.Popen[str], rng: random.Random) -> str:
    """SIGKILL a rank, from whose death torchrun ends the others, or all processes at once."""
    launcher, *ranks = family(process.pid)
    target = rng.choice(["rank", "all"]) if ranks else "all"
    for pid in [rng.choice(ranks)] if target == "rank" else [launcher, *ranks]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=LIMIT_S)
    return target


def attempt(rng: random.Random, whole_s: float, folder: Path) -> dict[str, Any]:
    """Kill a run again and again until it ends; then continue it with three stages."""
    kills: list[dict[str, Any]] = []
    while True:
        process = start(2, folder)
        with suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0, whole_s))
        if process.poll() is not None:
            return {"kills": kills, "sha256": digest(process), "at_3": digest(start(3, folder))}
        target = kill(process, rng)
        saved = [int(path.name[10:]) for path in folder.glob("iteration-????????")]
        kills.append({"target": target, "saved": max(saved, default=0)})


def main(output: Path, kills: int = 20, seed: int = 0) -> None:
    """Make attempts until there were so many kills."""
    rng, found = random.Random(seed), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory(prefix="faults-own-loop-") as name:
        started_s = time.monotonic()
        expected = {"sha256": digest(start(2, Path(name, "whole")))}
        whole_s = time.monotonic() - started_s
        expected["at_3"] = digest(start(3, Path(name, "whole")))
        while sum(len(one["kills"]) for one in found) < kills:
            one = attempt(rng, whole_s, Path(name, str(len(found))))
            same = {key: one[key] == value for key, value in expected.items()}
            found.append({"kills": one["kills"], "same_bits": same})
            print(json.dumps(found[-1]), flush=True)
    counts = {
        "runs": len(found),
        "kills": sum(len(one["kills"]) for one in found),
        "same_bits": sum(one["same_bits"]["sha256"] for one in found),
        "same_bits_at_3_stages": sum(one["same_bits"]["at_3"] for one in found),
    }
    load = [round(each, 1) for each in os.getloadavg()]
    write(output, results=counts, load_average=load, seed=seed, runs=found)


if __name__ == "__main__":
    tyro.cli(main)
