"""All stages in one process: the reference for every other runtime."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from delaygrad.boundary import Tree
from delaygrad.errors import StageError
from delaygrad.methods import Method, method_or_ddg
from delaygrad.methods.axes import ClipNorm, LossScale
from delaygrad.optimizers import MakeOptimizer
from delaygrad.partition.cuts import first_block, known_cuts
from delaygrad.partition.layers import Layer
from delaygrad.partition.sharing import check_cuts, find_ties
from delaygrad.runtime.pipeline import Pipeline, require_free
from delaygrad.runtime.tie_links import TieLinks, ties_of
from delaygrad.runtime.ties import require_exact_ties
from delaygrad.runtime.worker import Worker
from delaygrad.stage import LossFunction, LossWeight, Stage
from delaygrad.transport import Queue


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
        if not stages:
            raise StageError("a pipeline needs at least one stage (stages: 0)")
        require_free(stages)
        method = method_or_ddg(method, len(stages)).with_options(clip_norm, loss_scale)
        for stage in stages:
            require_exact_ties(stage, method)
        ties = find_ties([Layer("", stage) for stage in stages])
        check_cuts(range(1, len(stages)), ties)
        downward: list[Queue | None] = [None, *(Queue() for _ in stages[1:]), None]
        upward: list[Queue | None] = [None, *(Queue() for _ in stages[1:]), None]
        between: defaultdict[tuple[int, int], Queue] = defaultdict(Queue)

        def tie_links(k: int) -> TieLinks | None:
            shared = ties_of(stages[0])
            if not shared:
                return None
            return TieLinks(
                shared, k, receive=lambda o: between[o, k], send=lambda o: between[k, o]
            )

        workers = [
            Worker(
                Stage(
                    module,
                    make_optimizer,
                    stage_index=k,
                    num_stages=len(stages),
                    method=method,
                    loss_fn=loss_fn,
                    loss_weight=loss_weight,
                    allow_nonfinite_loss=allow_nonfinite_loss,
                ),
                activations=(downward[k], downward[k + 1]),
                gradients=(upward[k + 1], upward[k]),
                ties=tie_links(k),
            )
            for k, module in enumerate(stages)
        ]
        super().__init__(workers, len(stages), method, known_cuts([*map(first_block, stages)]))

    @property
    def stages(self) -> list[nn.Module]:
        """The live modules, from the input."""
        return self.modules

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
