"""Each stage draws its random numbers (dropout) from a stream of its own.

In one process all stages would otherwise share one generator. In several processes the ranks'
generators would move apart, and with them ``torch.randperm`` and ``DataLoader(shuffle=True)``:
every rank would read other batches. With a stream for each stage both runtimes draw the same
numbers, and no stage moves the process's generators. A network of one stage draws from the
process's generators: training it is plain training.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeAlias

import torch
from torch import Tensor

RandomState: TypeAlias = dict[str, Tensor]
"""Generator states by device type: ``cpu``, and the stage's accelerator if it is on one."""

_GOLDEN_RATIO = 0x9E3779B97F4A7C15
_MASK = (1 << 63) - 1
_UNCHANGED = nullcontext()


def stage_seed(seed: int, stage_index: int) -> int:
    """Derive the seed of a stage's stream; no stage has the seed itself.

    Example:
        >>> len({7, stage_seed(7, 0), stage_seed(7, 1), stage_seed(7, 2)})
        4
    """
    return (seed + _GOLDEN_RATIO * (stage_index + 1)) & _MASK


class RandomStream:
    """The random numbers of one stage.

    Args:
        device: where the stage computes.
        seed: where the stream starts; None: it is that of the process's own generators.
    """

    def __init__(self, device: torch.device, seed: int | None) -> None:
        self._device = device
        self._own: RandomState | None = None
        if seed is not None:
            self._own = {"cpu": torch.Generator().manual_seed(seed).get_state()}
            if device.type != "cpu":
                generator = torch.Generator(device).manual_seed(seed)
                self._own[device.type] = generator.get_state()

    def state(self) -> RandomState:
        """Return a copy of where the stream stands."""
        return self._read() if self._own is None else dict(self._own)

    def set_state(self, state: RandomState) -> None:
        """Put the stream back to where it stood when ``state`` was taken."""
        if self._own is None:
            self._write(state)
        else:
            self._own = {"cpu": state["cpu"], **state}

    def drawing(self) -> AbstractContextManager[None]:
        """Within the block, PyTorch's default generators are this stream."""
        return _UNCHANGED if self._own is None else self._drawing(self._own)

    @contextmanager
    def _drawing(self, own: RandomState) -> Iterator[None]:
        outside = self._read()
        try:
            self._write(own)
            yield
        finally:
            self._own = self._read()
            self._write(outside)

    @contextmanager
    def replaying(self, state: RandomState) -> Iterator[None]:
        """Within the block, draw again what was drawn after ``state``; the stream stays put."""
        outside = self._read()
        try:
            self._write(state)
            yield
        finally:
            self._write(outside)

    def _read(self) -> RandomState:
        state = {"cpu": torch.get_rng_state()}
        if self._device.type != "cpu":
            module = torch.get_device_module(self._device)
            state[self._device.type] = module.get_rng_state(self._device)
        return state

    def _write(self, state: RandomState) -> None:
        torch.set_rng_state(state["cpu"].cpu())  # torch.load may have moved it
        if self._device.type != "cpu" and self._device.type in state:
            module = torch.get_device_module(self._device)
            module.set_rng_state(state[self._device.type].cpu(), self._device)
