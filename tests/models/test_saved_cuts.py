"""Where a network was cut is in every state, and a continued program cuts it there again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from exact import assert_same
from networks import sgd
from ranks import run_ranks
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import delaygrad as dg
from delaygrad.runtime import cutting

SAMPLE = torch.ones(4, 6)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return x


def local(cut: str, model: nn.Module | None = None) -> dg.LocalPipeline:
    stages = dg.split(model or Net(), 2, sample_inputs=SAMPLE, cuts=[cut])
    return dg.LocalPipeline(stages, mse_loss, sgd)


def train(pipe: Any, first: int, end: int) -> None:
    for t in range(first, end):
        pipe.step(SAMPLE * t / 9, SAMPLE.sin())


def test_states_hold_the_cuts_and_those_of_others_are_refused(tmp_path: Path) -> None:
    pipe = local("layers.1")
    assert pipe.cuts == pipe.state_dict()["cuts"] == ["layers.1"]
    train(pipe, 0, 3)
    pipe.save(tmp_path)
    other = local("layers.3")
    before = other.state_dict()
    with pytest.raises(
        dg.CheckpointError,
        match=r"cuts there: \['layers.1'\], here: \['layers.3'\]\).*saved_cuts",
    ):
        other.load_newest(tmp_path)
    assert_same(other.state_dict(), before, "state")
    stages = dg.split(Net(), 2, sample_inputs=SAMPLE, cuts=dg.saved_cuts(tmp_path))
    again = dg.LocalPipeline(stages, mse_loss, sgd)
    assert again.load_newest(tmp_path) == {}
    for each in (pipe, again):
        train(each, 3, 6)
    assert_same(again.state_dict(), pipe.state_dict(), "state")


def test_an_nn_sequential_is_cut_where_it_was_too() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Tanh(), nn.Linear(6, 6)))
    assert local("1.1", model).cuts == ["1.1"]


def test_stages_made_by_hand_have_no_cuts_and_older_states_load() -> None:
    model = nn.Sequential(*Net().layers)
    by_hand = dg.LocalPipeline([model[:2], model[2:]], mse_loss, sgd)
    assert by_hand.cuts is None
    state = {**by_hand.state_dict(), "cuts": ["2"]}
    by_hand.load_state_dict(state)
    state.pop("cuts")
    by_hand.load_state_dict(state)


def test_a_damaged_newest_checkpoint_does_not_hide_the_cuts(tmp_path: Path) -> None:
    assert dg.saved_cuts(tmp_path) is None
    pipe = local("layers.2")
    for t in range(2):
        train(pipe, t, t + 1)
        pipe.save(tmp_path)
    for path in sorted(tmp_path.iterdir())[-1].iterdir():
        path.write_bytes(b"")
    assert dg.saved_cuts(str(tmp_path)) == ["layers.2"]


def _on_a_rank(rank: int, world_size: int, folder: str) -> Any:
    own = Path(folder) / f"disk{rank}"
    found: dict[str, Any] = {}
    measured = []
    split = cutting.split

    def watched(*args: Any, **options: Any) -> list[nn.Module]:
        measured.append(options["cuts"] is None)
        return split(*args, **options)

    cutting.split = watched  # type: ignore[assignment]
    for number in range(2):
        cuts = dg.saved_cuts(own) or ["layers.3"]
        pipe = dg.DistributedPipeline.from_model(
            Net(), mse_loss, sgd, sample_inputs=SAMPLE, cuts=cuts, timeout_s=60
        )
        with pipe:
            found["loaded"] = pipe.load_newest(own)
            train(pipe, 3 * number, 3 * number + 3)
            pipe.save(own)
            found["cuts"], found["state"] = pipe.cuts, pipe.state_dict()
    return {**found, "measured": measured}


def test_ranks_continue_with_the_cuts_of_their_checkpoint(tmp_path: Path) -> None:
    told = run_ranks(_on_a_rank, 2, args=(str(tmp_path),), timeout_s=100)
    pipe = local("layers.3")
    train(pipe, 0, 6)
    for rank, found in enumerate(told):
        assert found["cuts"] == ["layers.3"] and found["loaded"] == {}
        assert found["measured"] == [False, False]
        assert_same(found["state"]["stages"][str(rank)], pipe.state_dict()["stages"][str(rank)])
