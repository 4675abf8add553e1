"""The links of one stage with its neighbours, and the process groups that they run in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import distributed_c10d

from delaygrad.errors import PartitionError, ScheduleError, TransportError
from delaygrad.methods import Method
from delaygrad.partition.cuts import first_block
from delaygrad.runtime import exchange
from delaygrad.runtime.tie_links import TieLinks, ties_of
from delaygrad.runtime.tied_parameters import require_untied
from delaygrad.schedule import Schedule
from delaygrad.transport.wire import Wire, WireReceiver, WireSender, reason_of


class Links:
    """The links of one stage with its neighbours, each direction in groups of its own.

    Args:
        device: where the stage computes.
        group: one rank for each stage, in order; None is the default group.
        timeout_s: seconds to wait for another rank.
        schedule: gives the number of messages that may be in flight.

    Raises:
        TransportError: another rank does not make its links within ``timeout_s``.
    """

    def __init__(
        self,
        device: torch.device,
        group: dist.ProcessGroup | None,
        timeout_s: float,
        schedule: Schedule,
    ) -> None:
        self._stage_index = dist.get_rank(group)
        ranks = dist.get_process_group_ranks(group) if group else list(range(dist.get_world_size()))
        self._timeout_s = timeout_s
        below = None if self._stage_index == 0 else self._stage_index - 1
        above = None if self._stage_index == len(ranks) - 1 else self._stage_index + 1

        def wire(peer: int, content: str, towards: str, pair: tuple[Any, Any]) -> Wire:
            name = f"{towards} stage {peer} (rank {ranks[peer]})"
            remembered = 1 + schedule.micro_batches  # parts of a batch may differ by a sample
            return Wire(ranks[peer], name, content, *pair, device, timeout_s, remembered)

        self._wire, self._schedule, self._num_stages = wire, schedule, len(ranks)
        self.from_below = self.to_above = self.from_above = self.to_below = None
        self.predictions_from_below = self.predictions_to_above = None
        with self.meeting():
            self.groups = Groups(ranks, device, timedelta(seconds=timeout_s))
            down, up, predictions = (self.groups.pair() for _ in range(3))
        if above is not None:
            in_flight = schedule.messages_under_way(self._stage_index, len(ranks))
            self.to_above = WireSender(wire(above, "an activation", "to", down), in_flight)
            self.from_above = WireReceiver(wire(above, "an error gradient", "from", up))
            self.predictions_to_above = WireSender(wire(above, "an activation", "to", predictions))
        if below is not None:
            self.from_below = WireReceiver(wire(below, "an activation", "from", down))
            in_flight = schedule.messages_under_way(below, len(ranks))
            self.to_below = WireSender(wire(below, "an error gradient", "to", up), in_flight)
            self.predictions_from_below = WireReceiver(
                wire(below, "an activation", "from", predictions)
            )

    def agree(self, method: Method, stage: nn.Module) -> tuple[int, list[str | None]]:
        """Check that all ranks have the same method, and stages of one split.

        Args:
            stage: this rank's.

        Returns:
            seed, first_blocks: of stage 0's process; of all stages that `split` has made.

        Raises:
            ScheduleError: the methods differ.
            PartitionError: the stages share other parameters.
            TransportError: a rank is missing.
        """
        with self.meeting():
            ties = sorted([tie.path, *tie.stages] for tie in ties_of(stage))
            own = method.to_json(), repr(method), ties, torch.initial_seed(), first_block(stage)
            said = exchange.all_gather(own, self.groups.first)
        if any(identity != said[0][0] for identity, *_ in said):
            given = ", ".join(f"stage {k}: {name}" for k, (_, name, *_) in enumerate(said))
            raise ScheduleError(f"the ranks were given different methods ({given})")
        if any(ties != said[0][2] for _, _, ties, *_ in said):
            raise PartitionError(
                f"the ranks have stages of different splits (shared parameters of stage 0: "
                f"{said[0][2]}, of stage {self._stage_index}: {ties}); cut alike on all ranks"
            )
        return said[0][3], [block for *_, block in said]

    def connect_ties(self, stage: nn.Module) -> tuple[TieLinks | None, TieLinks | None]:
        """Make the links of shared parameters, for training and for predictions; after ``agree``.

        Raises:
            TransportError: a rank is missing.
        """
        ties, here = ties_of(stage), self._stage_index
        if not ties:
            return None, None
        with self.meeting():
            down, up, predictions = (self.groups.pair() for _ in range(3))
        value, gradient = "a shared parameter", "the gradient of a shared parameter"

        def receive(other: int) -> WireReceiver:
            content, group = (value, down) if other < here else (gradient, up)
            return WireReceiver(self._wire(other, content, "from", group))

        def send(other: int) -> WireSender:
            content, group = (value, down) if other > here else (gradient, up)
            first, last = min(here, other), max(here, other)
            in_flight = self._schedule.messages_under_way(first, self._num_stages, last)
            return WireSender(self._wire(other, content, "to", group), in_flight)

        return TieLinks(ties, here, receive=receive, send=send), TieLinks(
            ties,
            here,
            receive=lambda o: WireReceiver(self._wire(o, value, "from", predictions)),
            send=lambda o: WireSender(self._wire(o, value, "to", predictions)),
            gradients=False,
        )

    def require_untied(self, stage: nn.Module) -> None:
        """Compare the parameters of all stages; see ``delaygrad.runtime.tied_parameters``.

        Raises:
            PartitionError: two ranks hold copies of one parameter.
            TransportError: a rank is missing.
        """
        with self.meeting():
            require_untied(stage, self.groups.first)

    @contextmanager
    def meeting(self) -> Iterator[None]:
        """Within the block, a rank that does not come is a TransportError."""
        try:
            yield
        except RuntimeError as error:
            raise TransportError(
                f"[stage {self._stage_index}, rank {dist.get_rank()}] another rank did not make "
                f"its pipeline: it is gone, or took longer than {self._timeout_s:g} s; see its own "
                f"error ({reason_of(error)})"
            ) from error


class Groups:
    """Process groups that can be destroyed and made again.

    ``torch.distributed.new_group`` names a group of some ranks by the number of groups that exist.
    After a group was destroyed, the next one would get the same name, and would find the old
    addresses in the store. And ranks that destroy groups at different times would use different
    names for one group. So the groups here are made by the function that ``new_group`` calls, with
    names that are never reused: the n-th group of these ranks. That function is private to torch;
    it is the same from torch 2.11 to 2.15.
    """

    def __init__(self, ranks: list[int], device: torch.device, timeout: timedelta) -> None:
        self._ranks, self._device, self._timeout = ranks, device, timeout
        self._made: list[dist.ProcessGroup] = []
        self._apart: dist.ProcessGroup | None = None
        self._store = distributed_c10d._get_default_store()
        place = f"delaygrad/{'_'.join(map(str, ranks))}"
        # Each rank counts for itself: all make the same pipelines in the same order.
        self._name = f"{place}/{self._store.add(f'{place}/{dist.get_rank()}', 1)}"

    @property
    def first(self) -> dist.ProcessGroup:
        """One on the CPU."""
        return self._made[0]

    def pair(self) -> tuple[dist.ProcessGroup, dist.ProcessGroup]:
        """Make a group on the CPU and a group on the device; they may be the same."""
        on_cpu = self._make("gloo")
        backend: str = distributed_c10d._world.pg_map[distributed_c10d._get_default_group()][0]
        return on_cpu, on_cpu if self._device.type == "cpu" else self._make(backend)

    def between_steps(self) -> dist.ProcessGroup:
        """Return one on the CPU for what all ranks tell each other; made when first asked for.

        All ranks ask for it at the same time.
        """
        if self._apart is None:
            self._apart = self._make("gloo")
        return self._apart

    def give_back(self, *, failed: bool) -> None:
        """Destroy the groups, and with them every transfer that is still posted.

        Their sockets and threads end when the last transfer is forgotten, too.

        Args:
            failed: whether transfers on a device may hang; they are then ended without waiting.
        """
        for group in self._made:
            with suppress(ValueError):  # the user has destroyed all groups at once already
                if failed and group is not self.first and self._device.type != "cpu":
                    group.abort()
                dist.destroy_process_group(group)
        self._made.clear()

    def _make(self, backend: str) -> dist.ProcessGroup:
        ranks = self._ranks
        # Bound to no device: NCCL would then split the default group, which takes all its ranks.
        group, _ = distributed_c10d._new_process_group_helper(
            len(ranks),
            ranks.index(dist.get_rank()),
            ranks,
            dist.Backend(backend),
            self._store,
            distributed_c10d.GroupName(f"{self._name}/{len(self._made)}"),
            timeout=self._timeout,
        )
        assert isinstance(group, dist.ProcessGroup)
        distributed_c10d._world.pg_group_ranks[group] = {rank: k for k, rank in enumerate(ranks)}
        self._made.append(group)
        return group
