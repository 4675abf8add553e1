"""The links of a rank with its neighbours, and the process groups that they run in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import PrefixStore
from torch.distributed import distributed_c10d

from delaygrad.errors import PartitionError, ScheduleError, TransportError
from delaygrad.methods import Method
from delaygrad.partition.cuts import first_block
from delaygrad.partition.graph.ties import TiedParameter
from delaygrad.runtime import exchange
from delaygrad.runtime.tie_links import TieLinks, tie_links, ties_of
from delaygrad.runtime.tied_parameters import require_untied
from delaygrad.schedule import Schedule
from delaygrad.transport.wire import Lane, Wire, WireReceiver, WireSender, reason_of


class Links:
    """The links of a rank's stages with those of the ranks beside it, each direction in its groups.

    Args:
        held: how many stages this rank has.
        device: where they compute.
        group: the ranks, in the order of their stages; None is the default group.
        timeout_s: seconds to wait for another rank.

    Raises:
        TransportError: another rank does not make its links within ``timeout_s``.
    """

    def __init__(
        self,
        held: int,
        device: torch.device,
        group: dist.ProcessGroup | None,
        timeout_s: float,
    ) -> None:
        self._ranks = dist.get_process_group_ranks(group or dist.group.WORLD)
        self._device, self._timeout_s = device, timeout_s
        own = dist.get_rank(group)
        self._place = f"rank {dist.get_rank()}"
        with self.meeting():
            self.groups = Groups(self._ranks, device, timedelta(seconds=timeout_s))
            self._down, self._up, self._predictions = (self.groups.pair() for _ in range(3))
            counts = exchange.all_gather(held, self.groups.together)
        self._rank_of = [rank for rank, count in enumerate(counts) for _ in range(count)]
        self.counts: list[int] = counts
        """How many stages each rank has."""
        self.num_stages = sum(counts)
        """K."""
        self.stages = range(sum(counts[:own]), sum(counts[: own + 1]))
        """Of this rank."""
        self._place = f"stage {self.stages[0]}, {self._place}"

    def connect(self, schedule: Schedule) -> None:
        """Make the links between neighbours.

        Args:
            schedule: gives the number of messages that may be in flight.

        Raises:
            TransportError: a rank is gone.
        """
        self._schedule = schedule
        below, above = self.stages[0] - 1, self.stages[-1] + 1
        activation, gradient = "an activation", "an error gradient"
        from_below = to_below = predicted_below = from_above = to_above = predicted_above = None
        if above < self.num_stages:
            to_above = self._sender(above - 1, above, activation, self._down)
            from_above = WireReceiver(self._wire(above, gradient, "from", self._up))
            predicted_above = WireSender(self._wire(above, activation, "to", self._predictions))
        if below >= 0:
            from_below = WireReceiver(self._wire(below, activation, "from", self._down))
            to_below = self._sender(below + 1, below, gradient, self._up)
            predicted_below = WireReceiver(self._wire(below, activation, "from", self._predictions))
        self.activations = from_below, to_above
        self.gradients = from_above, to_below
        self.predictions = predicted_below, predicted_above

    def agree(self, method: Method, stages: Sequence[nn.Module]) -> tuple[int, list[str | None]]:
        """Check that all ranks have the same method, and stages of one split.

        Args:
            stages: this rank's.

        Returns:
            seed, first_blocks: of stage 0's process; of all stages that `split` has made.

        Raises:
            ScheduleError: the methods differ.
            PartitionError: the stages share other parameters.
            TransportError: a rank is missing.
        """
        with self.meeting():
            ties = sorted([tie.path, *tie.stages] for tie in ties_of(stages[0]))
            first_blocks = [*map(first_block, stages)]
            own = method.to_json(), repr(method), ties, torch.initial_seed(), first_blocks
            said = exchange.all_gather(own, self.groups.together)
        if any(identity != said[0][0] for identity, *_ in said):
            names = zip(map(self._rank_of.index, range(len(said))), said, strict=True)
            given = ", ".join(f"stage {k}: {name}" for k, (_, name, *_) in names)
            raise ScheduleError(f"the ranks were given different methods ({given})")
        if any(ties != said[0][2] for _, _, ties, *_ in said):
            raise PartitionError(
                f"the ranks have stages of different splits (shared parameters of stage 0: "
                f"{said[0][2]}, of stage {self.stages[0]}: {ties}); cut alike on all ranks"
            )
        return said[0][3], [block for *_, blocks in said for block in blocks]

    def connect_ties(self, stage: nn.Module) -> tuple[dict[int, TieLinks], dict[int, TieLinks]]:
        """Make the links of shared parameters, for training and for predictions; after ``agree``.

        Raises:
            TransportError: a rank is missing.
        """
        ties = ties_of(stage)
        lanes = _lanes(ties, self._rank_of)
        with self.meeting():
            groups = [[self.groups.pair() for _ in range(3)] for _ in set(lanes.values())]
        value, gradient = "a shared parameter", "the gradient of a shared parameter"

        def of(source: int, target: int) -> tuple[str, tuple[Any, Any], Any]:
            down, up, predictions = groups[lanes[min(source, target), max(source, target)]]
            return (value, down, predictions) if source < target else (gradient, up, None)

        def receive(source: int, target: int) -> WireReceiver:
            content, group, _ = of(source, target)
            return WireReceiver(self._wire(source, content, "from", group))

        def send(source: int, target: int) -> WireSender:
            content, group, _ = of(source, target)
            return self._sender(source, target, content, group)

        def receive_prediction(source: int, target: int) -> WireReceiver:
            return WireReceiver(self._wire(source, value, "from", of(source, target)[2]))

        def send_prediction(source: int, target: int) -> WireSender:
            return WireSender(self._wire(target, value, "to", of(source, target)[2]))

        return tie_links(ties, self.stages, receive=receive, send=send), tie_links(
            ties, self.stages, receive=receive_prediction, send=send_prediction, gradients=False
        )

    def require_untied(self, stages: Sequence[nn.Module]) -> None:
        """Compare the parameters of all ranks; see ``delaygrad.runtime.tied_parameters``.

        Raises:
            PartitionError: two ranks hold copies of one parameter.
            TransportError: a rank is missing.
        """
        with self.meeting():
            require_untied(dict(zip(self.stages, stages, strict=True)), self.groups.together)

    def _sender(
        self, source: int, target: int, content: str, group: tuple[Lane, Lane]
    ) -> WireSender:
        """Make the end of a link that the schedule knows."""
        ends = min(source, target), max(source, target)
        in_flight = self._schedule.messages_under_way(ends[0], self.num_stages, ends[1])
        return WireSender(self._wire(target, content, "to", group), in_flight)

    def _wire(self, stage: int, content: str, towards: str, pair: tuple[Lane, Lane]) -> Wire:
        peer = self._rank_of[stage]
        name = f"{towards} stage {stage} (rank {self._ranks[peer]})"
        remembered = 1 + self._schedule.micro_batches  # parts of a batch may differ by a sample
        return Wire(peer, name, content, *pair, self._device, self._timeout_s, remembered)

    @contextmanager
    def meeting(self) -> Iterator[None]:
        """Within the block, a rank that does not come is a TransportError."""
        try:
            yield
        except RuntimeError as error:
            raise TransportError(
                f"[{self._place}] another rank did not make its pipeline: it is gone, or took "
                f"longer than {self._timeout_s:g} s; see its own error ({reason_of(error)})"
            ) from error


def _lanes(ties: Sequence[TiedParameter], rank_of: Sequence[int]) -> dict[tuple[int, int], int]:
    """Number the links between stages of two ranks: those of the same ranks need groups apart."""
    used: Counter[tuple[int, int]] = Counter()
    lanes = {}
    for owner, other in sorted({(tie.owner, k) for tie in ties for k in tie.borrowers}):
        ranks = rank_of[owner], rank_of[other]
        if ranks[0] != ranks[1]:
            lanes[owner, other] = used[ranks]
            used[ranks] += 1
    return lanes


class Groups:
    """Process groups that can be destroyed and made again.

    ``torch.distributed.new_group`` names a group of some ranks by the number of groups that exist.
    After a group was destroyed, the next one would get the same name, and would find the old
    addresses in the store. And ranks that destroy groups at different times would use different
    names for one group. So the groups here are made by the function that ``new_group`` calls, with
    names that are never reused: the n-th group of these ranks. That function is private to torch;
    it is the same from torch 2.11 to 2.15.

    The links on the CPU are gloo's backends without a group around them, which takes less time.

    Args:
        ranks: in the order of their stages.
        device: where the stages compute.
        timeout: to wait for another rank.
    """

    def __init__(self, ranks: list[int], device: torch.device, timeout: timedelta) -> None:
        self._ranks, self._device, self._timeout = ranks, device, timeout
        self._own = ranks.index(dist.get_rank())
        self._made: list[dist.ProcessGroup] = []
        self._names = count()
        self._store = distributed_c10d._get_default_store()
        place = f"delaygrad/{'_'.join(map(str, ranks))}"
        # Each rank counts for itself: all make the same pipelines in the same order.
        self._place = f"{place}/{self._store.add(f'{place}/{dist.get_rank()}', 1)}"
        self.together = self._make("gloo")
        """One on the CPU for what all ranks tell each other."""

    def pair(self) -> tuple[Lane, Lane]:
        """Make what carries a link's bytes on the CPU, and on the device; they may be the same."""
        store, size = PrefixStore(self._name(), self._store), len(self._ranks)
        backend: Any = dist.ProcessGroupGloo(store, self._own, size, self._timeout)
        on_cpu: Lane = backend
        return on_cpu, on_cpu if self._device.type == "cpu" else self.on_device()

    def on_device(self) -> dist.ProcessGroup:
        """Make a group on the device; on the CPU it is ``together``."""
        if self._device.type == "cpu":
            return self.together
        backend: str = distributed_c10d._world.pg_map[distributed_c10d._get_default_group()][0]
        return self._make(backend)

    def give_back(self, *, failed: bool) -> None:
        """Destroy the groups, and with them every transfer that is still posted.

        Their sockets and threads end when the last transfer is forgotten, too.

        Args:
            failed: whether transfers on a device may hang; they are then ended without waiting.
        """
        for group in self._made:
            with suppress(ValueError):  # the user has destroyed all groups at once already
                if failed and group is not self.together:
                    group.abort()
                dist.destroy_process_group(group)
        self._made.clear()

    def _name(self) -> str:
        return f"{self._place}/{next(self._names)}"

    def _make(self, backend: str) -> dist.ProcessGroup:
        # Bound to no device: NCCL would then split the default group, which takes all its ranks.
        group, _ = distributed_c10d._new_process_group_helper(
            len(self._ranks),
            self._own,
            self._ranks,
            dist.Backend(backend),
            self._store,
            distributed_c10d.GroupName(self._name()),
            timeout=self._timeout,
        )
        assert isinstance(group, dist.ProcessGroup)
        places = {rank: place for place, rank in enumerate(self._ranks)}
        distributed_c10d._world.pg_group_ranks[group] = places
        self._made.append(group)
        return group
