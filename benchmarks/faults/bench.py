"""Attack runs as accidents do, and count what survives; see README.md.

Each attempt is one line of records.jsonl, written when it is over. Started again, the script goes
on with the attempts that are missing. Attempt n of an attack is the same in every run of the
script, but for the speed of the machine.

Run: python -m benchmarks.faults.bench --output-dir benchmarks/faults/results [--scale 0.02]
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro

from benchmarks.alternating import write
from benchmarks.faults import attacks
from tests.interrupted_loops import interrupt_loop

ATTACKS: dict[str, tuple[Callable[..., dict[str, Any]], int, bool]] = {
    # name: the attack, how many attempts, whether it needs root
    "kill": (attacks.kill, 100, False),
    "interrupt": (attacks.interrupt, 60, False),
    "interrupt in a loop": (interrupt_loop, 300, False),
    "full disk": (attacks.full_disk, 20, True),
    "cable cut for 2 s": (attacks.cut_for_a_while, 10, True),
    "cable cut for good": (attacks.cut_for_good, 10, True),
}


def reference(stages: int, folder: Path) -> dict[str, Any]:
    """Train undisturbed: the digest, the number of records, and the time before the first."""
    run_dir, started_s = folder / "run", time.monotonic()
    with attacks.running(*attacks.DELAYGRAD, *attacks.train(stages, run_dir)) as process:
        attacks.wait_for(process, run_dir, 1)
        start_s = round(time.monotonic() - started_s, 3)
        ended = attacks.end_of(process)
    found = attacks.digest(run_dir)
    if ended.code != 0 or found is None:
        raise SystemExit(f"the undisturbed run failed:\n{ended.err}")
    records = attacks.events(run_dir)
    return {"stages": stages, "sha256": found, "records": records, "start_s": start_s}


def attempt(name: str, index: int, references: list[dict[str, Any]]) -> dict[str, Any]:
    attack, _, _ = ATTACKS[name]
    rng, start_s = random.Random(f"{name} {index}"), time.monotonic()
    chosen = references[0] if "cable" in name else rng.choice(references)
    with tempfile.TemporaryDirectory(prefix="faults-run-") as folder:
        record = attack(rng, Path(folder), chosen)
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


def main(output_dir: Path, scale: float = 1.0, attacks: tuple[str, ...] = tuple(ATTACKS)) -> None:
    """Make the attempts that are missing.

    Args:
        output_dir: folder of records.jsonl and results.json.
        scale: part of the attempts.
        attacks: names of attacks.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    log = output_dir / "records.jsonl"
    known = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    records = {(record["attack"], record["attempt"]): record for record in known}
    with tempfile.TemporaryDirectory(prefix="faults-reference-") as folder:
        references = [reference(stages, Path(folder, str(stages))) for stages in (2, 3)]
    for name in attacks:
        _, count, needs_root = ATTACKS[name]
        if needs_root and os.geteuid() != 0:
            print(f"{name}: left out, needs root")
            continue
        index, hits = 0, 0
        while hits < max(1, round(scale * count)):
            if (name, index) not in records:
                records[name, index] = record = attempt(name, index, references)
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
                print(json.dumps(record)[:300], flush=True)
            hits += records[name, index]["outcome"] != "missed"
            index += 1
    results = summarise(list(records.values()))
    write(output_dir / "results.json", references=references, results=results)


if __name__ == "__main__":
    tyro.cli(main)
