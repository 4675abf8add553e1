"""What waits is kept apart from the optimizer, and no memory is copied that need not be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exact import assert_same
from torch import nn

from delaygrad.errors import StashError
from delaygrad.stash import BufferStash, ParameterStash, Pending, Stash, as_it_was


def test_an_entry_is_taken_out_once() -> None:
    stash = Stash[str]("graph")
    stash.put(4, "four")
    stash.put(2, "two")
    assert list(stash) == [(4, "four"), (2, "two")]
    assert stash.pop(2) == "two"
    with pytest.raises(StashError, match=r"no graph .* \(batch: 2, stashed: \[4\]\)"):
        stash.pop(2)
    assert len(stash) == 1


def test_a_second_entry_for_a_batch_is_refused_and_the_first_kept() -> None:
    stash = Stash[str]("graph")
    stash.put(4, "first")
    with pytest.raises(StashError, match=r"a graph is stashed for this batch already \(4\)"):
        stash.put(4, "second")
    assert stash.pop(4) == "first"


def addresses(module: nn.Module) -> list[int]:
    return [p.data_ptr() for p in module.parameters()]


def test_a_version_costs_no_memory_until_an_update() -> None:
    module = nn.Linear(3, 2)
    stash = ParameterStash(module)
    version = stash.current()
    assert [slot.alias.data_ptr() for slot in version.slots] == addresses(module)


def test_an_update_moves_the_live_parameters_and_not_the_version() -> None:
    module = nn.Linear(3, 2)
    before, values = addresses(module), [p.detach().clone() for p in module.parameters()]
    stash = ParameterStash(module)
    first, second = stash.current(), stash.current()
    stash.before_update()
    assert not set(addresses(module)) & set(before)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    for version in (first, second):
        assert [slot.alias.data_ptr() for slot in version.slots] == before
        for slot, value in zip(version.slots, values, strict=True):
            assert torch.equal(slot.alias, value)


def test_an_update_without_a_waiting_version_copies_nothing() -> None:
    module = nn.Linear(3, 2)
    stash = ParameterStash(module)
    stash.current()
    stash.before_update()
    before = addresses(module)
    stash.before_update()
    assert addresses(module) == before
    stash.current()
    stash.forget()
    stash.before_update()
    assert addresses(module) == before


def test_the_module_computes_with_a_version_only_within_the_block() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 3))
    live = list(module.parameters())
    weights = module[1]._flat_weights
    version = ParameterStash(module).current()
    with version.installed():
        assert [id(p) for p in module.parameters()] == [id(s.alias) for s in version.slots]
        assert module[1]._flat_weights[0] is module[1].weight_ih_l0 is not live[2]
    assert [id(p) for p in module.parameters()] == [id(p) for p in live]
    assert [id(w) for w in module[1]._flat_weights] == [id(w) for w in weights]


def test_a_parameter_replaced_meanwhile_stays_replaced() -> None:
    module = nn.Linear(3, 2)
    version = ParameterStash(module).current()
    replacement = nn.Parameter(torch.ones(2, 3))
    module.weight = replacement
    with version.installed():
        assert module.weight is version.slots[0].alias
    assert module.weight is replacement


def test_tied_parameters_share_one_alias_and_one_gradient() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    version = ParameterStash(module).current()
    assert [slot.name for slot in version.slots] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert version.slots[0].alias is version.slots[2].alias
    version.slots[0].alias.grad = torch.ones(3, 3)
    version.move_gradients()
    assert torch.equal(module[0].weight.grad, torch.ones(3, 3))
    assert version.slots[0].alias.grad is None and module[0].bias.grad is None


def test_frozen_parameters_are_kept_too_but_never_copied() -> None:
    module = nn.Linear(3, 2)
    module.bias.requires_grad_(False)
    stash = ParameterStash(module)
    version = stash.current()
    assert [slot.alias.requires_grad for slot in version.slots] == [True, False]
    stash.before_update()
    weight, bias = version.slots
    assert weight.alias.data_ptr() != module.weight.data_ptr()
    assert bias.alias.data_ptr() == module.bias.data_ptr()
    module.bias.requires_grad_(True)
    stash.before_update()  # may be written from now on
    assert bias.alias.data_ptr() != module.bias.data_ptr()


def test_a_parameter_frozen_meanwhile_gets_no_gradient() -> None:
    module = nn.Linear(3, 2)
    version = ParameterStash(module).current()
    version.slots[0].alias.grad = torch.ones(2, 3)
    module.weight.requires_grad_(False)
    version.move_gradients()
    assert module.weight.grad is None


def test_a_restored_version_has_the_saved_values_and_what_was_frozen() -> None:
    module = nn.Linear(3, 2)
    stash = ParameterStash(module)
    module.bias.requires_grad_(False)
    saved = {name: t.clone().detach() for name, t in stash.current().tensors().items()}
    for name, tensor in stash.current().tensors().items():
        saved[name].requires_grad_(tensor.requires_grad)
    with torch.no_grad():
        module.weight.zero_()
    module.bias.requires_grad_(True)
    restored = stash.restore(5, saved)
    assert restored.edition == 5
    assert [slot.alias.requires_grad for slot in restored.slots] == [True, False]
    assert_same(restored.tensors(), saved)


def waiting(**more: Any) -> Pending:
    nothing: dict[str, Any] = {"inputs": [], "structure": None, "targets": None, "share": 1.0}
    return Pending(**nothing, weights=None, random_state=None, **more)


def test_copied_buffers_leave_no_trace() -> None:
    module = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    module[1].running_mean = module[0].running_mean  # shared stays shared
    buffers = dict(module.named_buffers(remove_duplicate=False))
    values = {name: value.clone() for name, value in buffers.items()}
    with as_it_was(module, waiting(), torch.device("cpu")):
        module(torch.randn(4, 3))
        assert module[1].running_mean is module[0].running_mean is not buffers["0.running_mean"]
    for name, buffer in module.named_buffers(remove_duplicate=False):
        assert buffer is buffers[name] and torch.equal(buffer, values[name])


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("rebound", torch.zeros(1))
        self.register_buffer("constant", torch.ones(2))

    def forward(self) -> None:
        self.count += 1
        self.rebound = self.rebound + 1


def test_buffers_are_kept_as_each_forward_met_them() -> None:
    module = nn.Sequential(nn.BatchNorm1d(3), Counts())
    stash = BufferStash(module)
    first = stash.current()
    assert set(first) == {"1.count", "1.rebound", "1.constant"}  # not unread statistics
    module[1]()
    second = stash.current()
    module[1]()
    for met, count in ((first, 0), (second, 1)):
        with as_it_was(module, waiting(buffers=met), torch.device("cpu")):
            assert module[1].count.item() == module[1].rebound.item() == count
            module[1]()
        assert met["1.count"].item() == count  # what is kept is not what a replay works on
    assert module[1].count.item() == module[1].rebound.item() == 2


def test_a_buffer_that_stays_the_same_is_copied_once() -> None:
    module = Counts()
    stash = BufferStash(module)
    first = stash.current()
    module()
    assert stash.current()["constant"] is first["constant"]
    module.constant = torch.full((2,), 3.0)
    assert stash.current()["constant"].tolist() == [3.0, 3.0]


def test_statistics_that_a_batchnorm_reads_are_kept_whoever_writes_them() -> None:
    module = nn.BatchNorm1d(3)
    stash = BufferStash(module.eval())
    before = stash.current()["running_mean"]
    module.train()(torch.randn(4, 3) + 7)  # PyTorch does not count this write
    after = BufferStash(module.eval()).current()["running_mean"]
    assert torch.equal(before, torch.zeros(3)) and not torch.equal(after, before)
    assert torch.equal(stash.current()["running_mean"], after)


def test_a_change_by_hand_begins_an_edition() -> None:
    module = nn.Linear(3, 2)
    stash = ParameterStash(module)
    assert stash.edition() == stash.current().edition == stash.current().edition == 0
    module.weight.data = module.weight.data * 0.5
    assert stash.edition() == stash.current().edition == 1
    module.bias.requires_grad_(False)
    assert stash.current().edition == 2
    stash.before_update()
    assert stash.edition() == stash.current().edition == 3
    module.weight = nn.Parameter(torch.ones(2, 3))
    assert stash.current().edition == 4


def test_a_replay_computes_in_what_the_forward_computed_in() -> None:
    module, device = nn.Linear(2, 2), torch.device("cpu")
    for dtype in (None, torch.bfloat16):
        with as_it_was(module, waiting(autocast=dtype), device):
            assert module(torch.ones(1, 2)).dtype == (dtype or torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16), as_it_was(module, waiting(), device):
        assert module(torch.ones(1, 2)).dtype == torch.float32
