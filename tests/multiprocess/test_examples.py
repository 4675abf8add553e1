"""The programs under examples/ run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_two_processes_learn_to_read_digits(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run"),
            *("--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"),
            EXAMPLES / "two_processes.py",
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,  # where it saves the stages
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    told = re.findall(r"accuracy on 297 digits held out: ([\d.]+)%", done.stdout)
    assert len(told) == 1 and float(told[0]) > 88
    assert f"accuracy of the whole model, loaded: {told[0]}%" in done.stdout
    saved = {path.name for path in tmp_path.rglob("*.pt")}
    assert saved == {"stage0.pt", "stage1.pt"}
