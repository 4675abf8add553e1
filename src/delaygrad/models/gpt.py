"""A decoder-only transformer for next-character prediction.

References:
    Radford et al., "Language Models are Unsupervised Multitask Learners", 2019 (GPT-2): pre-norm
    blocks, learned positions, and the initialisation.
    Differs: the head is not tied to the embedding. Tied, one weight would live on the first stage
    and on the last one; in a pipeline these are different processes, and their two gradients belong
    to different iterations.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delaygrad.models.sizes import require_dropout, require_positive

_INIT_STD = 0.02


class TokenEmbedding(nn.Module):
    """Add the embeddings of tokens and of their positions.

    Args:
        vocabulary_size: tokens.
        context_length: the longest sequence.
        width: elements of an embedding.
        dropout: probability of zeroing one.
    """

    def __init__(
        self, vocabulary_size: int, context_length: int, width: int, dropout: float
    ) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary_size, width)
        self.position = nn.Embedding(context_length, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, T) int64 to (B, T, width); T up to the context length."""
        length, limit = tokens.shape[1], self.position.num_embeddings
        if length > limit:
            raise ValueError(
                f"sequence is longer than the context (tokens: {length}, context_length: {limit}); "
                f"shorten it or build the model with a longer context"
            )
        positions = torch.arange(length, device=tokens.device)
        embedded: Tensor = self.dropout(self.token(tokens) + self.position(positions))
        return embedded


class TransformerBlock(nn.Module):
    """Causal self-attention, then a perceptron, each normalised before and added to its input.

    Args:
        width: elements of an embedding, a multiple of num_heads.
        num_heads: attention heads.
        dropout: probability in the attention weights and after both parts.
    """

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)
        self.num_heads = num_heads

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, width) to (B, T, width); position t sees positions up to t."""
        x = x + self.dropout(self.attention_out(self._attend(self.norm1(x))))
        out: Tensor = x + self.dropout(self.mlp_out(F.gelu(self.mlp_in(self.norm2(x)))))
        return out

    def _attend(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        heads = self.qkv(x).view(batch, length, 3, self.num_heads, width // self.num_heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each (B, heads, T, width / heads)
        mixed = F.scaled_dot_product_attention(
            query, key, value, dropout_p=self.dropout.p if self.training else 0.0, is_causal=True
        )
        return mixed.transpose(1, 2).reshape(batch, length, width)


def gpt(
    *,
    vocabulary_size: int,
    context_length: int,
    width: int = 128,
    num_layers: int = 4,
    num_heads: int = 4,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Build a small GPT; its children are ``embedding, block1, …, block<num_layers>, norm, head``.

    Args:
        vocabulary_size: tokens.
        context_length: the longest sequence.
        width: elements of an embedding, a multiple of num_heads.
        num_layers: transformer blocks.
        num_heads: attention heads per block.
        dropout: probability; 0 for none.
    Returns:
        (B, T) int64 -> (B, T, vocabulary_size) logits.
    Raises:
        ValueError: a number is out of range, or the heads do not divide the width.
    Example:
        >>> model = gpt(vocabulary_size=65, context_length=16, width=32, num_layers=2)
        >>> tuple(model(torch.zeros(1, 16, dtype=torch.int64)).shape)
        (1, 16, 65)
    """
    require_positive(
        vocabulary_size=vocabulary_size,
        context_length=context_length,
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
    )
    require_dropout(dropout)
    if width % num_heads:
        raise ValueError(
            f"heads do not divide the width (width: {width}, num_heads: {num_heads}); use a width "
            f"of {width // num_heads * num_heads or num_heads} or "
            f"{(width // num_heads + 1) * num_heads}"
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["embedding"] = TokenEmbedding(vocabulary_size, context_length, width, dropout)
    for layer in range(1, num_layers + 1):
        layers[f"block{layer}"] = TransformerBlock(width, num_heads, dropout)
    layers["norm"] = nn.LayerNorm(width)
    layers["head"] = nn.Linear(width, vocabulary_size, bias=False)
    model = nn.Sequential(layers)
    _initialise(model, num_layers)
    return model


def _initialise(model: nn.Sequential, num_layers: int) -> None:
    """Draw weights from N(0, 0.02²); those that end a residual branch smaller by √(2·layers)."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            ends_branch = name.endswith(("attention_out", "mlp_out"))
            std = _INIT_STD / math.sqrt(2 * num_layers) if ends_branch else _INIT_STD
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
