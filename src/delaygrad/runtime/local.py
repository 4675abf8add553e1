"""All stages in one process: the reference for every other runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from delaygrad.boundary import Tree
from delaygrad.methods import Method, method_or_ddg
from delaygrad.methods.axes import ClipNorm, LossScale
from delaygrad.optimizers import MakeOptimizer
from delaygrad.partition.cuts import first_block, known_cuts
from delaygrad.runtime.chain import chain, listed, require_apart
from delaygrad.runtime.pipeline import Pipeline
from delaygrad.runtime.tie_links import tie_links, ties_of
from delaygrad.stage import LossFunction, LossWeight


class LocalPipeline(Pipeline):
    """Train K stages in this process, one action after the other.

    The arithmetic is that of ``DistributedPipeline``, bit for bit on a CPU with the same number of
    threads, so any K can be studied on a laptop. With one stage it is plain training, bit for bit.

    Args:
        stages: K modules, from the input; each takes what the one before returns. They are trained
            in place, in the mode (``train()``) that they are in.
        loss_fn: ``loss_fn(outputs, targets)``, a 0-d tensor; or a pair of it and extras, which
            ``extras`` keeps.
        make_optimizer: ``make_optimizer(params)``, called for each stage that has parameters.
        method: the rule to train by.
        loss_weight: how losses of micro-batches combine. None or "mean": by their samples. "sum":
            ``loss_fn`` is a sum. A function ``loss_weight(targets)``, for instance the number of
            valid items: by its value; a part of weight 0 does not count.
        allow_nonfinite_loss: accept a loss that is NaN or infinite. Otherwise such a loss is an
            error, on a GPU some steps later.
        clip_norm: largest norm of the gradients of all stages together; a stage knows those of the
            others from messages. ``ClipNorm(max_norm, wait=True)`` waits for all.
        loss_scale: the first scale of the loss, for float16; a batch whose gradients are not
            finite is skipped. ``LossScale(...)`` has more options.

    Raises:
        StageError: the stages belong to another pipeline, which is not closed.
        PartitionError: two stages share parameters or buffers, other than constant ones
            (``register_buffer(..., persistent=False)``).

    Example:
        >>> import torch, delaygrad as dg
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> pipe = dg.LocalPipeline(
        ...     dg.split(model, 2, cuts=["2"]),
        ...     nn.functional.cross_entropy,
        ...     lambda params: torch.optim.SGD(params, lr=0.1),
        ...     method=dg.DDG(),
        ... )
        >>> loss = pipe.step(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))
        >>> pipe.flush()
        >>> pipe.predict(torch.randn(2, 4)).shape
        torch.Size([2, 3])

    References:
        Huo et al., ICML 2018, arXiv:1804.10574, Algorithms 1 and 2. Differs: see `DDG`.
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        loss_fn: LossFunction,
        make_optimizer: MakeOptimizer,
        *,
        method: Method | None = None,
        loss_weight: LossWeight = None,
        allow_nonfinite_loss: bool = False,
        clip_norm: float | ClipNorm | None = None,
        loss_scale: float | LossScale | None = None,
    ) -> None:
        stages = listed(list(stages))
        method = method_or_ddg(method, len(stages)).with_options(clip_norm, loss_scale)
        require_apart(stages, method)
        workers = chain(
            stages,
            make_optimizer,
            ties=tie_links(ties_of(stages[0]), range(len(stages))),
            num_stages=len(stages),
            method=method,
            loss_fn=loss_fn,
            loss_weight=loss_weight,
            allow_nonfinite_loss=allow_nonfinite_loss,
        )
        super().__init__(workers, len(stages), method, known_cuts([*map(first_block, stages)]))

    def predict(self, inputs: Tree) -> Any:
        """See ``Pipeline.predict``; also works when the pipeline is closed."""
        self._interrupt()
        for worker in self._workers.values():
            inputs = worker.predict(inputs)
        return inputs

    def _share(self, value: Any) -> list[Any]:
        return [value]

    def _gather_tensors(self, stages: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        return stages
