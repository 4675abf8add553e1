"""The programs under examples/ run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_two_processes_learn_to_read_digits(tmp_path: Path) -> None:
    told = printed_by("two_processes.py", tmp_path)
    accuracy = re.findall(r"accuracy on 297 digits held out: ([\d.]+)%", told)
    assert len(accuracy) == 1 and float(accuracy[0]) > 88
    assert f"accuracy of the whole model, loaded: {accuracy[0]}%" in told
    saved = {path.name for path in tmp_path.rglob("*.pt")}
    assert saved == {"stage0.pt", "stage1.pt"}


def test_two_stages_take_no_longer_than_under_1f1b(tmp_path: Path) -> None:
    told = printed_by("instead_of_1f1b.py", tmp_path)
    ratio = re.findall(r"per iteration: ([\d.]+) times the throughput", told)
    assert len(ratio) == 1 and float(ratio[0]) > 0.9  # 1.6 where nothing else runs


def printed_by(example: str, folder: Path) -> str:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run"),
            *("--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"),
            EXAMPLES / example,
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=folder,  # where it saves
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
