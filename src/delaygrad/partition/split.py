"""Split a network into stages: the same modules under the same names, in K containers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import nn

from delaygrad.boundary import Tree
from delaygrad.errors import PartitionError
from delaygrad.optimizers import MakeOptimizer
from delaygrad.partition.check import checked_stages
from delaygrad.partition.cuts import resolve_cuts
from delaygrad.partition.graph.network import Network
from delaygrad.partition.graph.stage import GraphStage
from delaygrad.partition.graph.ties import TiedParameter
from delaygrad.partition.layers import Layer, is_container, keeps_forward, list_layers
from delaygrad.partition.measured_cuts import measured_cuts
from delaygrad.partition.measurement import measuring
from delaygrad.partition.merge import mark_stage
from delaygrad.partition.sharing import Tie, check_cuts, find_ties, unbreakable_groups

__all__ = ["Cuttable", "cuttable", "separable_groups", "split"]


def split(
    model: nn.Module,
    num_stages: int,
    *,
    sample_inputs: Tree | None = None,
    cuts: Sequence[str | int] | None = None,
    blocks: Sequence[str] | None = None,
    make_optimizer: MakeOptimizer | None = None,
    recompute: bool = False,
    compile: bool | str = False,
) -> list[nn.Module]:
    """Split a network into stages of about equal time, or at given layers.

    The stages hold the modules of the model itself, not copies, under their names: `body.7.weight`
    keeps its name, and the stages' state_dicts together are the model's. The model itself is left
    as it is.

    An nn.Sequential is cut between its layers; nested ones may be cut open. Any other network is
    captured by torch.export and cut between its blocks: the items of its nn.Sequentials and
    nn.ModuleLists, and the children that contain no such list. Blocks stay the user's own modules.
    What a later stage needs (skips, masks) is carried along. The stages are compared with the model
    on the sample, see `check`.

    Args:
        model: any nn.Module.
        num_stages: 1 … number of layers or blocks.
        sample_inputs: one batch; the layers, then whole stages are timed on it, and the slowest
            stage is made as fast as possible. That takes a few seconds, for a large network about
            a dozen of its forward and backward passes. An nn.Sequential gets it as its one
            argument. Any other network: a tuple is its arguments, a dict its keyword arguments;
            pass the inputs of every step in the same way. Layers that share a buffer (but for
            constants, ``persistent=False``) are kept in one stage, and so are the layers of an
            nn.Sequential that share a parameter.
        cuts: the first layer or block of stages 1 … num_stages-1, by dotted path or index; nothing
            is measured then. Only an nn.Sequential (see `layer_names`) needs no sample_inputs.
        blocks: dotted paths of modules that stay whole, beside those that the rule chooses.
        make_optimizer: ``make_optimizer(params)``; with sample_inputs: its update counts too.
        recompute: with sample_inputs: all stages but the last run each forward twice.
        compile: compile each stage by torch.compile, after cutting; a string names the backend.
            Names, `merge` and state_dicts stay as they are.
    Returns:
        stages: num_stages modules; applied in order they are the model.
    Raises:
        PartitionError: the model, the number of stages, the cuts or the inputs do not fit.
    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 1)))
        >>> [list(stage.state_dict()) for stage in split(net, num_stages=2, cuts=["1.0"])]
        [['0.weight', '0.bias'], ['1.1.weight', '1.1.bias']]
    """
    network = cuttable(model, sample_inputs, blocks)
    _check_num_stages(num_stages, network)
    if cuts is not None:
        starts = resolve_cuts(cuts, [layer.name for layer in network.layers], num_stages)
        check_cuts(starts, network.ties)
    elif num_stages == 1:
        starts = []
    elif sample_inputs is not None:
        starts = _balanced_cuts(
            network, num_stages, sample_inputs, make_optimizer, recompute=recompute
        )
    else:
        raise PartitionError(
            f"nothing says where to cut (stages: {num_stages}); pass sample_inputs to balance the "
            "stages by measured time, or cuts to name their first layers"
        )
    stages = network.build(starts)
    for stage_index, stage in enumerate(stages):
        mark_stage(stage, stage_index, num_stages)
        if compile:
            _compile(stage, "inductor" if compile is True else compile)
    return stages


@dataclass(frozen=True)
class Cuttable:
    """A network as layers in a row.

    Args:
        layers: between any two of them a cut may fall.
        chain: the layers as an nn.Sequential, which can be measured.
        ties: tensors that several layers hold.
        captured: whether torch.export was needed.
        build: from the index of the first layer of stages 1 … K-1 to the stages.
        shared: from the same to the parameters that several stages would use.
    """

    layers: list[Layer]
    chain: nn.Module
    ties: list[Tie]
    captured: bool
    build: Callable[[Sequence[int]], list[nn.Module]]
    shared: Callable[[Sequence[int]], list[TiedParameter]] = lambda starts: []


def cuttable(
    model: nn.Module,
    sample_inputs: Tree | None,
    blocks: Sequence[str] | None = None,
    *,
    before_loss: bool = False,
) -> Cuttable:
    """Lay out a network as layers in a row; arguments as of `split`.

    ``before_loss``: the last layer's output goes to the loss, and need not be tensors.
    """
    if keeps_forward(model) and blocks is None:
        layers = list_layers(model)
        build = partial(_sequential_stages, model, layers)
        return Cuttable(layers, model, find_ties(layers), False, build)
    if sample_inputs is None:
        raise PartitionError(
            f"a network that is no nn.Sequential is captured from a sample (type: "
            f"{type(model).__name__}); pass sample_inputs, also beside cuts"
        )
    network = Network(model, sample_inputs, blocks)
    layers = network.segments(outputs_as_list=not before_loss)
    found = find_ties([Layer("", layer.module) for layer in layers])
    ties = [tie for tie in found if not _is_one_parameter(tie, layers)]  # those are handed on
    chain = nn.Sequential(*(layer.module for layer in layers))
    build = partial(checked_stages, network)
    return Cuttable(layers, chain, ties, True, build, shared=network.ties)


def _is_one_parameter(tie: Tie, layers: Sequence[Layer]) -> bool:
    first, last = layers[tie.first_layer].module, layers[tie.last_layer].module
    return tie.kind == "parameter" and (
        first.get_parameter(tie.first_name) is last.get_parameter(tie.last_name)
    )


def separable_groups(network: Cuttable, num_stages: int) -> list[int]:
    """List the first layer of each group that no cut may go through.

    Args:
        network: from `cuttable`.
        num_stages: that it shall be cut into.
    Raises:
        PartitionError: there are fewer layers or groups than stages, or no stage.
    Example:
        >>> separable_groups(cuttable(nn.Sequential(nn.ReLU(), nn.ReLU(), nn.ReLU()), None), 2)
        [0, 1, 2]
    """
    _check_num_stages(num_stages, network)
    groups, ties = unbreakable_groups(len(network.layers), network.ties), network.ties
    if len(groups) < num_stages:
        shown = [f"{tie.first_name!r} and {tie.last_name!r}" for tie in ties[:3]]
        parameters = all(tie.kind == "parameter" for tie in ties)
        captured = "pass blocks=[] to have the network captured, which lets stages share it, "
        raise PartitionError(
            f"shared tensors hold too many layers together (stages: {num_stages}, groups of layers "
            f"that can be separated: {len(groups)}, shared: {', '.join(shown)}); "
            f"{captured if parameters else ''}untie them (give "
            f"each layer its own tensor), or lower num_stages to {len(groups)}"
        )
    return groups


def _balanced_cuts(
    network: Cuttable,
    num_stages: int,
    sample_inputs: Tree,
    make_optimizer: MakeOptimizer | None,
    *,
    recompute: bool,
) -> list[int]:
    groups = separable_groups(network, num_stages)
    again = [*[recompute] * (num_stages - 1), False]
    with measuring(network.chain, sample_inputs, make_optimizer=make_optimizer) as measurement:
        costs = measurement.layers()
        return measured_cuts(measurement, costs, num_stages, groups=groups, again=again).cuts


def _sequential_stages(
    model: nn.Module, layers: Sequence[Layer], starts: Sequence[int]
) -> list[nn.Module]:
    bounds = pairwise([0, *starts, len(layers)])
    return [_take(model, "", {layer.name for layer in layers[a:b]}) for a, b in bounds]


def _take(container: nn.Module, prefix: str, names: set[str]) -> nn.Sequential:
    """Rebuild a container with the named layers only; a nested one that is whole is kept."""
    children: OrderedDict[str, nn.Module] = OrderedDict()
    for name, child in container._modules.items():
        path = prefix + name
        if child is None:
            continue
        if not is_container(child):
            if path in names:
                children[name] = child
            continue
        inside = {f"{path}.{layer.name}" for layer in list_layers(child)}
        if inside <= names:
            children[name] = child
        elif inside & names:
            children[name] = _take(child, f"{path}.", names)
    taken = nn.Sequential(children)
    taken.training = container.training
    return taken


def _compile(stage: nn.Module, backend: str) -> None:
    if isinstance(stage, GraphStage):
        stage.compile(backend=backend)
    else:  # compile() of an nn.Sequential of torch's own layers compiles nothing
        stage.forward = torch.compile(stage.forward, backend=backend)


def _check_num_stages(num_stages: int, network: Cuttable) -> None:
    if not isinstance(num_stages, int):
        raise TypeError(f"num_stages is not an int (num_stages: {num_stages!r}); pass a number")
    if num_stages < 1:
        raise PartitionError(f"too few stages (stages: {num_stages}); ask for at least 1")
    if num_stages > len(network.layers):
        unit, more = ("block", "") if network.captured else ("layer", "pass sample_inputs and ")
        raise PartitionError(
            f"more stages than {unit}s (stages: {num_stages}, {unit}s: {len(network.layers)}); "
            f"lower num_stages to {len(network.layers)}, or {more}name modules inside a {unit} in "
            f"blocks=[...], which opens it ({unit}s: {_listed(network.layers)})"
        )


def _listed(layers: Sequence[Layer]) -> str:
    names = [layer.name for layer in layers]
    return ", ".join(names[:4] + ["..."] * (len(names) > 4))
