import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from delaygrad.errors import PartitionError
from delaygrad.methods import BP, DDG, FDG, FR, Lookahead
from delaygrad.partition.costs import LayerCost, Storage, stages_of
from delaygrad.planning.stage_memory import fits_within, stage_memory

A, W = 2000, 120  # bytes of one layer's graph and parameters


def layers(num_layers, output=False):
    return [
        LayerCost(
            name=str(i),
            forward_s=1.0,
            backward_s=2.0,
            input_bytes=40,
            parameter_bytes=W,
            trainable_bytes=W,
            optimizer_bytes=2 * W,
            saved={i: Storage(A, A // 2)},
            outputs={1000 + i: Storage(50, 25)} if output else {},
        )
        for i in range(num_layers)
    ]


def memories(method, num_stages, per_stage=2):
    costs = layers(per_stage * num_stages)
    stages = stages_of(costs, range(per_stage, len(costs), per_stage))
    return [stage_memory(stage, method, k, num_stages) for k, stage in enumerate(stages)]


@given(st.integers(1, 12))
def test_uniform_stages_add_up_to_the_formula_of_the_design(num_stages):
    found = memories(DDG(), num_stages)
    activations, parameters = 2 * A * num_stages, 2 * W * num_stages
    assert sum(m.graph_bytes for m in found) == activations * (num_stages + 1) // 2
    assert sum(m.stale_parameter_bytes for m in found) == parameters * (num_stages - 1) // 2
    assert sum(m.parameter_bytes for m in found) == parameters
    assert sum(m.gradient_bytes for m in found) == parameters
    assert sum(m.optimizer_bytes for m in found) == 2 * parameters


def test_backpropagation_holds_one_graph_and_no_old_parameters():
    for memory in memories(BP(), 4):
        assert memory.graph_bytes == 2 * A and memory.stale_parameter_bytes == 0
        assert memory.boundary_bytes == 40


def test_slack_adds_and_micro_batches_take_away():
    first = memories(DDG(slack=1), 3)[0]  # lag 4
    assert (first.graph_bytes, first.stale_parameter_bytes) == (5 * 2 * A, 4 * 2 * W)
    first = memories(DDG(micro_batches=4), 5)[0]  # lag 4, delay 1
    assert (first.graph_bytes, first.stale_parameter_bytes) == (5 * 2 * A // 4, 2 * W)
    assert first.boundary_bytes == 5 * 40 // 4


@pytest.mark.parametrize(
    ("method", "versions"),
    [
        (DDG(), [2, 1, 0]),
        (DDG(weights="live"), [0, 0, 0]),
        (FR(), [0, 0, 0]),
        (FDG(), [4, 2, 0]),
        (Lookahead(micro_batches=2), [1 + 2, 1 + 2, 2]),  # the predicted, and the previous
    ],
    ids=repr,
)
def test_a_method_says_which_versions_of_the_parameters_are_kept(method, versions):
    found = [memory.stale_parameter_bytes for memory in memories(method, 3)]
    assert found == [count * 2 * W for count in versions]


def test_recomputation_keeps_one_graph_and_all_inputs():
    found = memories(DDG(recompute=True), 3)
    assert [m.graph_bytes for m in found] == [2 * A] * 3
    assert [m.boundary_bytes for m in found] == [120, 80, 40]
    assert [m.stale_parameter_bytes for m in found] == [4 * W, 2 * W, 0]


def test_a_rounded_stash_halves_the_graphs_of_delayed_stages_only():
    found = memories(DDG(stash_dtype=torch.bfloat16), 3)
    assert [m.graph_bytes for m in found] == [3 * A, 2 * A, 2 * A]


def test_the_end_of_a_graph_keeps_its_output_once():
    (cost,) = layers(1, output=True)
    first, last = (stage_memory(cost, BP(), k, num_stages=2) for k in range(2))
    assert (first.graph_bytes, last.graph_bytes) == (A + 50, A)
    both = LayerCost(name="0", forward_s=1, backward_s=1, saved=cost.saved, outputs=cost.saved)
    assert stage_memory(both, BP(), 0, num_stages=2).graph_bytes == A


def test_a_cap_that_nothing_keeps_says_the_least_that_would_do():
    costs = layers(6)
    # Stage 0 holds 2 graphs and an old version, so that 2 | 4 layers is the most even cut:
    #   stage 0  2 x 2 x 2000 + 80 + 2 x (1 + 1 + 2 + 1) x 120           = 9280
    #   stage 1      4 x 2000 + 40 + 4 x (1 + 1 + 2) x 120 + 3 x 40 sent = 10080
    with pytest.raises(PartitionError, match=r"stages: 2.*least cap that would do: 0\.009613 MiB"):
        fits_within(costs, DDG(), 2, 10079)
    fits = fits_within(costs, DDG(), 2, 10080)
    assert fits(0, 0, 2) and fits(1, 2, 6) and not fits(0, 0, 3)


def test_messages_wait_between_stages() -> None:
    (cost,) = layers(1)
    cost = dataclasses.replace(cost, gradient_bytes=30, output_bytes=20)
    method = DDG(slack=1, micro_batches=2)  # three messages of one direction are under way
    _, middle, last = (stage_memory(cost, method, k, num_stages=3) for k in range(3))
    assert middle.message_bytes == (3 * 40 + 40 + 2 * 30) // 2
    assert last.message_bytes == (3 * 40 + 40) // 2
    again = stage_memory(cost, DDG(slack=1, micro_batches=2, recompute=True), 1, num_stages=3)
    assert again.message_bytes == middle.message_bytes + 3 * 20 // 2
    assert stage_memory(cost, DDG(), 0, num_stages=1).message_bytes == 0
