"""``--optimizer muon``: which parameters Muon trains, and that they move as with torch alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import delaygrad, here, summary
from equivalence.naive import NaiveDelayedGradients
from exact import assert_same
from torch import nn
from torch.nn.functional import cross_entropy

import delaygrad as dg
from delaygrad.models import gpt, mlp, resnet
from delaygrad.partition.measurement import measuring
from delaygrad.training.optimizer_choices import Muon, mark_hidden_matrices

BLOCK = ("qkv", "attention_out", "mlp_in", "mlp_out")
HIDDEN = {f"block{n}.{name}.weight" for n in (1, 2) for name in BLOCK}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return gpt(vocabulary_size=11, context_length=6, width=8, num_layers=2, num_heads=2)


def marked(model: nn.Module) -> set[str]:
    mark_hidden_matrices(model)
    return {name for name, p in model.named_parameters() if hasattr(p, "is_hidden_matrix")}


def test_hidden_matrices_are_neither_embeddings_nor_the_outer_layers() -> None:
    assert marked(network()) == HIDDEN
    perceptron = mlp(sample_shape=(1, 4, 4), num_classes=3, width=5, depth=4)
    assert marked(perceptron) == {"linear2.weight", "linear3.weight"}
    assert marked(resnet(8, in_channels=1, num_classes=3)) == set()
    tied = network()
    tied.head.weight = tied.embedding.token.weight  # type: ignore[union-attr,assignment]
    assert marked(tied) == HIDDEN
    assert marked(nn.ReLU()) == set()


def by_hand(named: dict[str, nn.Parameter]) -> list[torch.optim.Optimizer]:
    """What the option stands for, with torch's own optimizers and literal names."""
    hidden = [p for name, p in named.items() if name in HIDDEN]
    others = [p for name, p in named.items() if name not in HIDDEN]
    return [
        torch.optim.Muon(
            [{"params": hidden}], lr=0.02, weight_decay=0.01, momentum=0.9,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW([{"params": others}], lr=0.02, weight_decay=0.01),
    ]  # fmt: skip


class Together:
    """Optimizers stepped by hand."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts

    def step(self) -> None:
        for part in self.parts:
            part.step()


def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy(outputs.flatten(0, 1), targets.flatten())


@pytest.mark.parametrize("num_stages", [1, 2, 4])
def test_it_trains_as_optimizers_made_by_hand(num_stages: int) -> None:
    model = network()
    mark_hidden_matrices(model)
    cuts = {1: [], 2: ["block2"], 4: ["block1", "block2", "norm"]}[num_stages]
    stages = dg.split(model, num_stages, cuts=cuts)
    names = iter([dict(stage.named_parameters()) for stage in stages])

    def make(parameters: list[nn.Parameter]) -> Together:
        return Together(by_hand(dict(zip(next(names), parameters, strict=True))))

    naive = NaiveDelayedGradients(stages, loss, make)  # type: ignore[arg-type]
    option = Muon(name="muon", lr=0.02, weight_decay=0.01, momentum=0.9)
    with dg.LocalPipeline(stages, loss, option.make) as pipe:
        for tokens in torch.randint(11, (7, 3, 7)):
            x, y = tokens[:, :-1], tokens[:, 1:]
            assert_same(pipe.step(x, y), naive.step(x, y))
        pipe.flush()
        naive.flush()
        whole = {name for stage in stages for name, _ in stage.named_parameters()}
        assert whole >= HIDDEN
        for ours, theirs in zip(pipe.stages, naive.stages, strict=True):
            assert_same(dict(ours.named_parameters()), dict(theirs.named_parameters()))


def test_one_stage_is_a_loop_of_ones_own() -> None:
    model, own = network(), network()
    mark_hidden_matrices(model)
    parts = by_hand(dict(own.named_parameters()))
    option = Muon(name="muon", lr=0.02, weight_decay=0.01, momentum=0.9)
    with dg.LocalPipeline([model], loss, option.make) as pipe:
        for tokens in torch.randint(11, (5, 3, 7)):
            x, y = tokens[:, :-1], tokens[:, 1:]
            ours = loss(own(x), y)
            own.zero_grad()
            ours.backward()
            for part in parts:
                part.step()
            assert_same(pipe.step(x, y), ours.detach())
    assert_same(dict(model.named_parameters()), dict(own.named_parameters()))


def test_the_copy_that_is_measured_has_the_same_hidden_matrices() -> None:
    model, seen = network(), list[int]()
    mark_hidden_matrices(model)

    def make(parameters: list[nn.Parameter]) -> list[torch.optim.Optimizer]:
        made = Muon(name="muon").make(parameters)
        seen.append(len(made[0].param_groups[0]["params"]))
        return made

    with measuring(model, torch.zeros(2, 6, dtype=torch.int64), make_optimizer=make) as measured:
        measured.layers()
    assert sum(seen) % len(HIDDEN) == 0
    assert set(seen) >= {len(BLOCK), 0}


@pytest.mark.slow
def test_both_runtimes_end_alike_and_a_changed_setting_counts_after_resuming(
    tmp_path: Path,
) -> None:
    (tmp_path / "input.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    given = (
        "train", "--data", "text", "--data-dir", tmp_path / "input.txt", "--context-length", 8,
        "--model", "gpt", "--width", 8, "--depth", 2, "--heads", 2, "--optimizer", "muon",
        "--momentum", 0.9, "--lr", 0.01, "--stages", 2, "--cuts", "block2", "--batch-size", 4,
        "--iterations", 6, "--checkpoint-every", 3,
    )  # fmt: skip
    runs = {runtime: tmp_path / runtime for runtime in ("local", "distributed")}
    here([str(word) for word in (*given, "--run-dir", runs["local"])])
    done = delaygrad(
        *given, "--run-dir", runs["distributed"], "--runtime", "distributed", "--quiet"
    )
    assert done.returncode == 0, done.stderr
    local, distributed = summary(runs["local"]), summary(runs["distributed"])
    for key in ("parameters_sha256", "test_loss", "train_loss"):
        assert local[key] == distributed[key], key
    ends = set()
    for decay in (0.1, 5.0):
        again = shutil.copytree(runs["local"], tmp_path / f"decay-{decay}")
        (again / "summary.json").unlink()
        recorded = json.loads((again / "config.json").read_text())
        config = recorded["config"]
        assert (config["optimizer"], config["momentum"]) == ("muon", 0.9)
        config |= {"iterations": 9, "weight_decay": decay, "run_dir": str(again)}
        (again / "config.json").write_text(json.dumps(recorded))
        here(["resume", str(again), "--allow-changes", "iterations", "weight_decay", "run_dir"])
        ends.add(summary(again)["parameters_sha256"])
    assert len(ends | {local["parameters_sha256"]}) == 3
