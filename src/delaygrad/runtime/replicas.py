"""Copies of a pipeline, each with its part of the data: the ranks of one stage average gradients.

mesh        dp 0   dp 1
pp 0        rank   rank      hold stage 0, and average its gradients before each update
pp 1        rank   rank      hold stage 1
               |      |
               pipelines
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parameter import is_lazy

from delaygrad.errors import PartitionError, StageError, TransportError
from delaygrad.methods import Method
from delaygrad.runtime import exchange
from delaygrad.runtime.average import Average
from delaygrad.runtime.links import Groups

__all__ = ["Replicas", "pipeline_of"]

_STAGES, _COPIES = "pp", "dp"


def pipeline_of(
    mesh: DeviceMesh | None, group: dist.ProcessGroup | None
) -> dist.ProcessGroup | None:
    """Return the ranks of this rank's pipeline, one for each stage.

    Raises:
        TransportError: the mesh has other dimensions, or a group is given beside it.
    """
    if mesh is None:
        return group
    if group is not None or set(mesh.mesh_dim_names or ()) != {_STAGES, _COPIES}:
        raise TransportError(
            f'a mesh needs the dimensions "pp" (stages) and "dp" (replicas), and no group beside '
            f"it (dimensions: {mesh.mesh_dim_names}); make it with "
            'init_device_mesh("cpu", (stages, replicas), mesh_dim_names=("pp", "dp"))'
        )
    return mesh.get_group(_STAGES)


class Replicas:
    """The ranks that hold this rank's stage.

    Args:
        mesh: stages and replicas.
        device: where the stage computes.
        timeout_s: seconds to wait for another rank.
    """

    def __init__(self, mesh: DeviceMesh, device: torch.device, timeout_s: float) -> None:
        own = dist.get_process_group_ranks(mesh.get_group(_COPIES))
        self.count, self.index = len(own), own.index(dist.get_rank())
        names = mesh.mesh_dim_names or ()
        by_copy = mesh.mesh.permute(names.index(_COPIES), names.index(_STAGES))
        timeout = timedelta(seconds=timeout_s)
        self._of_stage = Groups(own, device, timeout)
        self._everyone = Groups(by_copy.flatten().tolist(), device, timeout)
        self._on_device = self._of_stage.on_device()

    def require_alike(self, stages: Sequence[nn.Module], method: Method) -> None:
        """Raise unless all replicas begin with the same stages; all ranks call it.

        Raises:
            StageError: the method trains networks of its own.
            PartitionError: parameters, buffers or methods differ.
        """
        if method.error_gradient.is_local:
            raise StageError(
                f"the networks that {method} trains cannot be averaged; leave out mesh"
            )
        digest = hashlib.blake2b(str(method.to_json()).encode())
        for name, tensor in nn.ModuleList(stages).state_dict().items():
            if isinstance(tensor, Tensor) and not is_lazy(tensor):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                digest.update(content.numpy().data)
        told = exchange.all_gather(digest.hexdigest(), self._of_stage.together)
        if len(set(told)) > 1:
            raise PartitionError(
                f"the replicas of a stage differ, or their methods do (replicas alike with the "
                f"first: {[k for k, found in enumerate(told) if found == told[0]]} of "
                f"{len(told)}); make the network after torch.manual_seed(seed) on all ranks"
            )

    def average(self, parameters: list[nn.Parameter]) -> Average:
        """Make the average of a stage's gradients over its replicas."""
        return Average(parameters, self._on_device, self.count)

    def share(self, value: Any) -> list[Any]:
        """Return the values of all ranks of all replicas, one replica after the other."""
        return exchange.all_gather(value, self._everyone.together)

    def give_back(self, *, failed: bool) -> None:
        """Destroy the groups."""
        self._of_stage.give_back(failed=failed)
        self._everyone.give_back(failed=failed)
