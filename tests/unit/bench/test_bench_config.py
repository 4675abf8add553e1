from __future__ import annotations

from typing import Any

import pytest

from delaygrad.bench import ContestConfig
from delaygrad.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": 0}, r"\(rounds: 0; expected int >= 1"),
        ({"stages": 0}, r"\(stages: 0; expected int >= 1"),
        ({"turn_s": 0.0}, r"turn_s: 0.0; expected float > 0"),
        ({"iterations": 0}, r"iterations: 0; expected int >= 1"),
        ({"forward_s": 0.1}, r"forward_s is for sleeping stages .* set --workload sleep"),
        ({"workload": "sleep", "backward_s": -1.0}, r"backward_s: -1.0; expected float > 0"),
        ({"workload": "sleep", "boundary_bytes": 1}, r"boundary_bytes: 1; expected int >= 4"),
        (
            {"workload": "sleep", "stage_forward_s": (0.1,)},
            r"stage times do not fit .*stage_forward_s: 1, stage_backward_s: 0, stages: 2",
        ),
        ({"stage_forward_s": (0.1, 0.1), "stage_backward_s": (0.1, 0.1)}, r"for sleeping stages"),
        (
            {
                "workload": "sleep",
                "forward_s": 0.1,
                "stage_forward_s": (0.1, 0.2),
                "stage_backward_s": (0.1, 0.2),
            },
            r"either alike .* or each its own time",
        ),
        (
            {"workload": "sleep", "stage_forward_s": (0.1, 0.0), "stage_backward_s": (0.1, 0.2)},
            r"stage_forward_s: .*; expected float > 0",
        ),
        ({"cuts": ("a", "b")}, r"cuts do not fit the stages \(cuts: 2, stages: 2\)"),
        ({"contestants": ("bp", "ddg", "bp")}, r"a contestant is named twice"),
    ],
)
def test_wrong_setting_is_named_with_its_value(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ContestConfig(**settings).check()


def test_defaults_are_in_range() -> None:
    ContestConfig().check()
    ContestConfig(workload="sleep", forward_s=0.1, backward_s=0.2, boundary_bytes=4).check()
