"""Thirteen networks as users bring them, tiny and random: none is an nn.Sequential.

Each is made by a few lines of the user's own, with a sample, a batch of another size, and a loss.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

WORDS, CLASSES = 11, 5


class Bottleneck(nn.Module):
    """A residual block whose shortcut is a convolution where the shape changes."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, padding=1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(out), nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)
        self.downsample = None
        if stride > 1 or width != out:
            self.downsample = nn.Sequential(nn.Conv2d(width, out, 1, stride), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(2)
        self.layer1 = nn.Sequential(Bottleneck(4, 4, 1), Bottleneck(4, 4, 1))
        self.layer2 = nn.Sequential(Bottleneck(4, 8, 2), Bottleneck(8, 8, 1))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class SqueezeExcite(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(width, 2, 1), nn.Conv2d(2, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class InvertedResidual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand, self.norm1 = nn.Conv2d(width, 2 * width, 1), nn.BatchNorm2d(2 * width)
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.se, self.project = SqueezeExcite(2 * width), nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = F.hardswish(self.norm1(self.expand(x)))
        return x + self.project(self.se(F.hardswish(self.depthwise(out))))


class MobileNet(nn.Module):
    """Its parts are attributes, not a list; dropout as a function between them."""

    def __init__(self, drop: float = 0.1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.block1, self.block2 = InvertedResidual(4), InvertedResidual(4)
        self.block3, self.head = InvertedResidual(4), nn.Linear(4, CLASSES)
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        x = self.block3(self.block2(self.block1(x)))
        return self.head(F.dropout(x.mean((2, 3)), self.drop, self.training))


class ConvNeXtBlock(nn.Module):
    """Channels last inside; a scale of its own; stochastic depth in training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm, self.wide = nn.LayerNorm(width), nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.5))
        self.drop_path = 0.2

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        out = (self.scale * self.narrow(F.gelu(self.wide(out)))).permute(0, 3, 1, 2)
        if self.training and self.drop_path:
            kept = torch.rand(x.shape[0], 1, 1, 1) >= self.drop_path
            out = out * kept / (1 - self.drop_path)
        return x + out


class ConvNeXt(nn.Module):
    """Stages in lists of lists, with a normalisation of its own parameters between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 4, stride=2, padding=1)
        self.stages = nn.ModuleList(
            [nn.Sequential(*(ConvNeXtBlock(width) for _ in range(2))) for width in (4, 6)]
        )
        self.downsample = nn.ModuleList([nn.Identity(), nn.Conv2d(4, 6, 2, stride=2)])
        self.scale, self.head = nn.Parameter(torch.ones(6)), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for downsample, stage in zip(self.downsample, self.stages, strict=True):
            x = stage(downsample(x))
        return self.head(F.layer_norm(x.mean((2, 3)), (6,), self.scale))


class DenseNet(nn.Module):
    """Every layer reads all that came before it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3 + 2 * i, 2, 3, padding=1) for i in range(5)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(3 + 2 * i) for i in range(5)])
        self.head = nn.Linear(13, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found = [x]
        for norm, layer in zip(self.norms, self.layers, strict=True):
            found.append(layer(F.relu(norm(torch.cat(found, 1)))))
        return self.head(torch.cat(found, 1).mean((2, 3)))


class ClassToken(nn.Module):
    """A class token and positions outside all blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, stride=4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 17, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.layers = nn.ModuleList([copy.deepcopy(layer) for _ in range(3)])
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
        x = x + self.positions[:, : x.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)[:, 0])


class UNet(nn.Module):
    """Long skips: the first block's output is read by the last."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 4, 6, 8)
        pairs = list(zip(widths, widths[1:], strict=False))
        self.down = nn.ModuleList([_double(a, b) for a, b in pairs])
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList([_double(a + b, a) for a, b in pairs[:0:-1]])
        self.head = nn.Conv2d(4, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            skips.append(block(x))
            x = self.pool(skips[-1])
        x = skips.pop()
        for block in self.up:
            skip = skips.pop()
            x = F.interpolate(x, size=skip.shape[2:])
            x = block(torch.cat([x, skip], 1))
        return self.head(x)


class LSTMModel(nn.Module):
    """A language model whose recurrent layers return tuples."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.drop = nn.Embedding(WORDS, 6), nn.Dropout(0.1)
        self.rnns = nn.ModuleList([nn.LSTM(6, 6, batch_first=True) for _ in range(3)])
        self.head = nn.Linear(6, WORDS)

    def forward(self, words: Tensor) -> Tensor:
        x = self.drop(self.embed(words))
        for rnn in self.rnns:
            out, (hidden, _) = rnn(x)
            x = self.drop(x + out * hidden[-1].unsqueeze(1))
        return self.head(x)


class TiedLanguageModel(nn.Module):
    """The table of the words is read three times: at the start, between blocks, and by the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 6)
        self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(4)])
        self.head = nn.Linear(6, WORDS, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        for layer in self.layers[:3]:
            x = x + torch.tanh(layer(x))
        x = x + F.softmax(x @ self.embed.weight.T, -1) @ self.embed.weight
        return self.head(x + self.layers[3](x))


def _double(width: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(width, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU())


@dataclass(frozen=True)
class Specimen:
    """One network.

    Args:
        make: the user's code.
        batch: inputs of (batch size, length or side).
        loss: of the outputs and targets.
        targets: of (inputs, batch size, length).
        sizes: of the sample: batch size, and length or side.
        other: another batch size and length.
    """

    make: Callable[[], nn.Module]
    batch: Callable[[int, int], Any]
    loss: Callable[[Any, Any], Tensor]
    targets: Callable[[int, int], Tensor]
    sizes: tuple[int, int] = (4, 6)
    other: tuple[int, int] = (3, 5)

    def build(self) -> nn.Module:
        """The network, from seed 0, in training mode."""
        torch.manual_seed(0)
        return self.make().train()

    def batches(self, count: int, seed: int = 7) -> list[tuple[Any, Tensor]]:
        """Random batches of the sample's sizes; the last one is short."""
        torch.manual_seed(seed)
        size, length = self.sizes
        sizes = [size] * (count - 1) + [size - 1]
        return [(self.batch(n, length), self.targets(n, length)) for n in sizes]


def _words(size: int, length: int) -> Tensor:
    return torch.randint(WORDS, (size, length))


def _masked(size: int, length: int) -> dict[str, Tensor]:
    mask = torch.ones(size, length, dtype=torch.long)
    mask[-1, length - 2 :] = 0
    return {"input_ids": _words(size, length), "attention_mask": mask}


def _image(size: int, side: int) -> Tensor:
    return torch.randn(size, 3, side, side)


def _classes(size: int, _: int) -> Tensor:
    return torch.randint(CLASSES, (size,))


def _pixels(size: int, side: int) -> Tensor:
    return torch.randint(CLASSES, (size, side, side))


def _word_loss(outputs: Any, targets: Tensor) -> Tensor:
    logits = outputs if isinstance(outputs, Tensor) else outputs.logits
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _class_loss(outputs: Any, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs if isinstance(outputs, Tensor) else outputs.logits, targets)


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 8, "n_layer": 3, "n_head": 2, "n_positions": 32, "vocab_size": WORDS}
    return GPT2LMHeadModel(GPT2Config(**sizes, use_cache=False, bos_token_id=0, eos_token_id=0))


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_DECODER, tie_word_embeddings=False))


def _qwen3() -> nn.Module:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**_DECODER, head_dim=4, tie_word_embeddings=False))


_DECODER: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": WORDS,
    "max_position_embeddings": 32,
    "use_cache": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2}
    more = {"intermediate_size": 12, "vocab_size": WORDS, "max_position_embeddings": 32}
    return BertForSequenceClassification(BertConfig(**sizes, **more, num_labels=CLASSES))


def _t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(**sizes, vocab_size=WORDS, use_cache=False))


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2}
    more = {"intermediate_size": 12, "image_size": 16, "patch_size": 8}
    return ViTForImageClassification(ViTConfig(**sizes, **more, num_labels=CLASSES))


def _both_ends(size: int, length: int) -> dict[str, Tensor]:
    return {**_masked(size, length), "decoder_input_ids": _words(size, length + 1)}


def _vision(make: Callable[[], nn.Module], **sizes: Any) -> Specimen:
    return Specimen(make, _image, _class_loss, _classes, sizes=(4, 16), **sizes)


TRANSFORMERS = ("gpt2", "llama", "qwen3", "bert", "t5", "vit")
TIED = ("gpt2", "t5")
ZOO: dict[str, Specimen] = {
    "gpt2": Specimen(_gpt2, _masked, _word_loss, _words),
    "llama": Specimen(_llama, _masked, _word_loss, _words),
    "qwen3": Specimen(_qwen3, _masked, _word_loss, _words),
    "bert": Specimen(_bert, _masked, _class_loss, _classes),
    "t5": Specimen(_t5, _both_ends, _word_loss, lambda n, length: _words(n, length + 1)),
    "vit": _vision(_vit, other=(3, 16)),
    "resnet": _vision(ResNet, other=(3, 12)),
    "mobilenet": _vision(MobileNet, other=(3, 12)),
    "convnext": _vision(ConvNeXt, other=(3, 12)),
    "densenet": _vision(DenseNet, other=(3, 12)),
    "class token": _vision(ClassToken, other=(3, 12)),
    "unet": Specimen(UNet, _image, F.cross_entropy, _pixels, sizes=(4, 8), other=(3, 12)),
    "lstm": Specimen(LSTMModel, _words, _word_loss, _words),
}


TIED_LANGUAGE_MODEL = Specimen(TiedLanguageModel, _words, _word_loss, _words)
"""Split in three, all stages use one parameter."""

PLAIN_MOBILENET = _vision(lambda: MobileNet(drop=0.0), other=(3, 12))
"""Split writes the numbers that a model's own forward uses into the stages, dropout's too."""


def specimen(name: str) -> Specimen:
    """Return one; skip the test where its library is missing and this is not CI."""
    if name in TRANSFORMERS and "CI" not in os.environ:
        pytest.importorskip("transformers", reason="transformers is not installed (extra: dev)")
    return PLAIN_MOBILENET if name == "plain mobilenet" else ZOO[name]
