"""Find parameters of which two ranks hold a copy each: the copies would drift apart.

In one process a shared parameter is found by its memory. Ranks hold copies, so their contents are
compared when the pipeline is made:

    equal contents under one name      an error: it is one parameter (torch's ``pipeline`` copies)
    equal contents under two names     a warning: tied by hand, or initialised alike
    constant contents (zeros, ones)    ignored: biases and norms start like this
    frozen on both ranks               ignored: frozen copies stay equal

Each rank first sends a checksum of a sample of each parameter, which is fast for large stages.
Where two checksums are equal, checksums of the whole parameters are compared.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from itertools import combinations, product

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from delaygrad.errors import DelaygradWarning, PartitionError
from delaygrad.runtime import exchange

_SAMPLED = 4096  # elements


def require_untied(stages: Mapping[int, nn.Module], group: dist.ProcessGroup) -> None:
    """Compare this rank's parameters with those of the others; all ranks of the group call it.

    Args:
        stages: of this rank, by index.

    Raises:
        PartitionError: two ranks hold copies of one parameter under one name.
    """
    own = {(k, name): p for k, stage in stages.items() for name, p in _comparable(stage)}
    sampled = {place: _digest(_sample(parameter)) for place, parameter in own.items()}
    told = exchange.all_gather(list(sampled.values()), group)
    digests = [digest for of_rank in told for digest in set(of_rank)]
    repeated = {digest for digest in digests if digests.count(digest) > 1}
    if not repeated:
        return
    mine = [
        (*place, list(own[place].shape), own[place].requires_grad, _digest(own[place]))
        for place, digest in sampled.items()
        if digest in repeated
    ]
    _judge(exchange.all_gather(mine, group), dist.get_rank(group))


def _judge(told: list[list[tuple[int, str, list[int], bool, str]]], rank: int) -> None:
    for (one, ours), (other, theirs) in combinations(enumerate(told), 2):
        for mine, its in product(ours, theirs):
            (low, name, shape, trained, digest), (high, their_name, *_) = mine, its
            if its[2] != shape or its[4] != digest or not (trained or its[3]):
                continue
            found = f"(stage {low}: {name}, stage {high}: {their_name}, shape: {tuple(shape)})"
            if name == their_name:
                raise PartitionError(
                    f"two stages hold equal parameters under one name {found}; if it is one, "
                    "keep it in one stage, since its copies would drift apart; if not, "
                    "initialise them differently"
                )
            if rank in (one, other):
                warnings.warn(
                    f"two stages hold equal parameters {found}; if they are tied, their copies "
                    "will drift apart: keep them in one stage; if they are only initialised "
                    "alike, ignore this",
                    DelaygradWarning,
                    stacklevel=5,  # who makes the pipeline
                )


def _comparable(stage: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters whose contents can be compared, with their names."""
    for name, parameter in stage.named_parameters():
        if is_lazy(parameter) or parameter.is_meta or type(parameter.data) is not Tensor:
            continue
        if parameter.layout == torch.strided and parameter.numel() > 1:
            sample = _sample(parameter)
            if not bool((sample == sample[0]).all()):
                yield name, parameter


def _sample(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1)
    return flat[:: -(-flat.numel() // _SAMPLED)]


def _digest(tensor: Tensor) -> str:
    flat = tensor.detach().reshape(-1).cpu().contiguous()
    return hashlib.blake2b(flat.view(torch.uint8).numpy().data, digest_size=16).hexdigest()
