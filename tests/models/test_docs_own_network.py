"""What docs/your-own-network.md shows runs as it stands."""

import re
from pathlib import Path

from delaygrad.partition import measured_cuts, measurement

PAGE = Path(__file__).parents[2] / "docs" / "your-own-network.md"


def test_the_examples_run(monkeypatch):
    monkeypatch.setattr(measured_cuts, "BUDGET_S", 0.0)
    for budget in ("LAYERS_BUDGET_S", "STAGES_BUDGET_S"):
        monkeypatch.setattr(measurement, budget, 0.0)
    scope = {}
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        exec(example, scope)
    assert (
        scope["dg"].check([scope["first"], scope["last"]], scope["net"], scope["torch"].ones(4, 6))
        == 0.0
    )
