"""A lost overlap is a lost purpose: stages that sleep, so that only schedule and transport count.

With K = 4 stages, backpropagation takes K (f + b) in an iteration and DDG f + b. Waiting for an
error gradient at the end of an iteration, rather than just before the backward that needs it, would
cost DDG 2f + b, here 1.5 (f + b). Ratios with generous bounds: the machine may be busy.
"""

from __future__ import annotations

import json

import pytest
from commands import delaygrad

pytestmark = [pytest.mark.slow, pytest.mark.timing]

FORWARD_S, BACKWARD_S = 0.08, 0.08


def test_stages_work_at_once() -> None:
    done = delaygrad(
        "bench", "--workload", "sleep", "--stages", 4, "--contestants", "bp", "ddg",
        "--forward-s", FORWARD_S, "--backward-s", BACKWARD_S,
        "--iterations", 4, "--rounds", 3, "--json", "--quiet",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    bp, ddg = json.loads(done.stdout)["contestants"]
    # The best round: others on the machine make a round slower, nothing makes it faster.
    work_s = FORWARD_S + BACKWARD_S
    assert min(bp["iteration_s"]) >= 3 * work_s
    assert min(ddg["iteration_s"]) <= 1.4 * work_s
