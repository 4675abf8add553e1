from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from delaygrad.models.gpt import TransformerBlock, gpt

TOKENS = torch.arange(24).reshape(2, 12) % 11


def small(**options: Any) -> nn.Sequential:
    sizes = {"vocabulary_size": 11, "context_length": 12, "width": 16, "num_layers": 2}
    return gpt(**(sizes | options))


def test_children_and_logits() -> None:
    model = small()
    assert type(model) is nn.Sequential
    names = [name for name, _ in model.named_children()]
    assert names == ["embedding", "block1", "block2", "norm", "head"]
    assert model(TOKENS).shape == (2, 12, 11)
    assert model(TOKENS[:, :5]).shape == (2, 5, 11)


def test_parameters_number_as_counted_by_hand() -> None:
    width, layers = 16, 2
    block = 12 * width**2 + 13 * width  # 4 + 8 matrices; 3 + 1 + 4 + 1 biases, 2 x 2 for the norms
    by_hand = (11 + 12) * width + layers * block + 2 * width + 11 * width
    assert sum(parameter.numel() for parameter in small().parameters()) == by_hand


def test_no_parameter_is_shared() -> None:
    model = small()
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    assert len(set(pointers)) == len(pointers)


def test_position_sees_nothing_later() -> None:
    model = small()
    changed = TOKENS.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 11
    before, after = model(TOKENS), model(changed)
    torch.testing.assert_close(after[:, :7], before[:, :7], rtol=0, atol=1e-6)
    assert ((after - before)[:, 7:].abs().amax(-1) > 1e-5).all()


def test_attention_equals_its_formula() -> None:
    block = TransformerBlock(width=8, num_heads=2, dropout=0.0)
    x = torch.randn(3, 5, 8)
    query, key, value = block.qkv(x).split(8, dim=-1)
    heads = []
    for columns in (slice(0, 4), slice(4, 8)):
        scores = query[..., columns] @ key[..., columns].transpose(1, 2) / math.sqrt(4)
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
        heads.append(scores.softmax(-1) @ value[..., columns])
    torch.testing.assert_close(block._attend(x), torch.cat(heads, dim=-1))


def test_cut_anywhere_gives_the_same_gradients() -> None:
    whole = small()
    targets = TOKENS.roll(-1, dims=1)
    expected = copy.deepcopy(whole)
    F.cross_entropy(expected(TOKENS).flatten(0, 1), targets.flatten()).backward()
    for cut in range(1, len(whole)):
        model = copy.deepcopy(whole)
        activation = model[:cut](TOKENS)
        received = activation.detach().requires_grad_()
        F.cross_entropy(model[cut:](received).flatten(0, 1), targets.flatten()).backward()
        activation.backward(received.grad)
        for one, other in zip(model.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=0)


def test_dropout_acts_in_training_only() -> None:
    model = small(dropout=0.5)
    assert not torch.equal(model(TOKENS), model(TOKENS))
    model.eval()
    assert torch.equal(model(TOKENS), model(TOKENS))


def test_initialisation() -> None:
    model = small(width=128, num_layers=8)
    assert abs(model.block3.qkv.weight.std() / 0.02 - 1) < 0.02
    assert abs(model.block3.mlp_out.weight.std() / (0.02 / 4) - 1) < 0.02
    assert abs(model.block3.attention_out.weight.std() / (0.02 / 4) - 1) < 0.02
    assert (model.block3.mlp_in.bias == 0).all()
    # Untrained, it knows nothing: the loss is close to log(vocabulary).
    loss = F.cross_entropy(model(TOKENS).flatten(0, 1), TOKENS.flatten())
    assert abs(loss - math.log(11)) < 0.2


def test_sequence_beyond_the_context_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"longer than the context \(tokens: 13, context_length: 12"
    ):
        small()(torch.zeros(1, 13, dtype=torch.int64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 10, "num_heads": 4}, "use a width of 8 or 12"),
        ({"width": 3, "num_heads": 4}, "use a width of 4"),
        ({"num_layers": 0}, "num_layers must be at least 1"),
        ({"num_heads": 0}, "num_heads must be at least 1"),
        ({"vocabulary_size": 0}, "vocabulary_size must be at least 1"),
        ({"context_length": 0}, "context_length must be at least 1"),
        ({"dropout": -0.1}, "dropout is out of range"),
    ],
)
def test_number_out_of_range_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**change)
