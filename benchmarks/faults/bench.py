"""Attack runs as accidents do, and count what survives; see README.md.

Each attempt is one line of records.jsonl, written when it is over. Started again, the script goes
on with the attempts that are missing. Attempt n of an attack is the same in every run of the
script, but for the speed of the machine.

Run: python -m benchmarks.faults.bench --output-dir benchmarks/faults/results [--scale 0.02]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.faults import attacks
from benchmarks.faults.commands import DELAYGRAD, Network, digest, events, running, wait_until
from benchmarks.faults.interrupted import interrupt_loop
from delaygrad.training.run_folder import environment

ATTACKS: dict[str, tuple[Callable[..., dict[str, Any]], int, bool]] = {
    # name: the attack, how many attempts, whether it needs root
    "kill": (attacks.kill, 100, False),
    "interrupt": (attacks.interrupt, 60, False),
    "interrupt in a loop": (interrupt_loop, 300, False),
    "full disk": (attacks.full_disk, 20, True),
    "cable cut for 2 s": (attacks.cut_for_a_while, 10, True),
    "cable cut for good": (attacks.cut_for_good, 10, True),
}
STAGES = (2, 3)


def reference(stages: int, folder: Path) -> dict[str, Any]:
    """Train undisturbed: the digest, the number of records, and the time before the first."""
    run_dir = folder / "run"
    with running(*DELAYGRAD, *Network(stages).arguments(run_dir)) as command:
        wait_until(lambda: events(run_dir), command)
        start_s = round(time.monotonic() - command.started_s, 3)
        ended = command.wait()
    found = digest(run_dir)
    if ended.code != 0 or found is None:
        raise SystemExit(f"the undisturbed run failed:\n{ended.err}")
    return {"stages": stages, "sha256": found, "records": events(run_dir), "start_s": start_s}


def attempt(name: str, index: int, references: list[dict[str, Any]]) -> dict[str, Any]:
    attack, _, _ = ATTACKS[name]
    rng = random.Random(f"{name} {index}")
    chosen = references[0] if "cable" in name else rng.choice(references)
    folder = Path(tempfile.mkdtemp(prefix="faults-run-"))
    start_s = time.monotonic()
    try:
        record = attack(rng, folder, chosen)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    took_s = round(time.monotonic() - start_s, 2)
    return {"attack": name, "attempt": index, "took_s": took_s, **record}


def summarise(records: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Count the outcomes of each attack."""
    table: dict[str, dict[str, int]] = {}
    for name in ATTACKS:
        outcomes = Counter(r["outcome"] for r in records if r["attack"] == name)
        missed = outcomes.pop("missed", 0)
        if outcomes or missed:
            table[name] = {"attempts": outcomes.total(), **outcomes, "missed": missed}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--scale", type=float, default=1.0, help="part of the attempts")
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    log = options.output_dir / "records.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {(record["attack"], record["attempt"]) for record in records}
    with tempfile.TemporaryDirectory(prefix="faults-reference-") as folder:
        references = [reference(stages, Path(folder, str(stages))) for stages in STAGES]
    for name in options.attacks:
        _, count, needs_root = ATTACKS[name]
        if needs_root and os.geteuid() != 0:
            print(f"{name}: left out, needs root")
            continue
        index, hits = 0, 0
        while hits < max(1, round(options.scale * count)):
            if (name, index) not in done:
                record = attempt(name, index, references)
                records.append(record)
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
                print(json.dumps({k: v for k, v in record.items() if k != "error"}), flush=True)
            hits += any(
                r["outcome"] != "missed"
                for r in records
                if (r["attack"], r["attempt"]) == (name, index)
            )
            index += 1
    report = {"references": references, "environment": environment(), "results": summarise(records)}
    print(json.dumps(report["results"], indent=2))
    (options.output_dir / "results.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
