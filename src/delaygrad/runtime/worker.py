"""A worker runs the actions of one stage: receive what an action needs, send its result."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from delaygrad.boundary import Tree, flatten, parts_of, unflatten
from delaygrad.errors import DelaygradError, TransportError, WorkerError
from delaygrad.partition.graph.stage import check_inputs
from delaygrad.records import Event, Iteration, StageClock, StageTrace
from delaygrad.runtime.batch_identity import BatchId, Identity, identity_of, require_same
from delaygrad.schedule import Action, Kind
from delaygrad.stage import Stage, require_one_batch
from delaygrad.transport import Message, Receiver, Sender

if TYPE_CHECKING:
    from delaygrad.runtime.tie_links import TieLinks


class Inbox:
    """The receiving end of a link, which knows how many messages are in flight.

    The schedule says what the neighbour has sent. So all messages in flight can be collected at any
    time, for a checkpoint.
    """

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._early: deque[Message] = deque()
        self._under_way = 0
        self._neighbours_phase = 0
        self.loads = 0
        """How many times a state was loaded."""

    def announce(self) -> None:
        """Note that, by the schedule, the neighbour sends one more message."""
        self._under_way += 1

    def take(self, batch_index: int, phase: int) -> Message:
        """Return the next message, which must be of this batch, sent in this phase.

        Raises:
            TransportError: no message came, or it is of another batch or phase.
        """
        message = self._early.popleft() if self._early else self._receive(batch_index, phase)
        if message.batch_index != batch_index:
            raise TransportError(
                f"the neighbour is out of step (expected batch: {batch_index}, "
                f"received: {message.batch_index}); all ranks must take the same steps"
            )
        if message.phase != phase:
            raise TransportError(
                f"the neighbour has not called flush at the same step (batch: {batch_index}, last "
                f"flush here: before batch {phase}, there: before batch {message.phase}); all "
                "ranks must take the same steps"
            )
        return message

    def take_aside(self) -> Message:
        """Receive a message that the schedule does not know; keep those in flight for later."""
        self.collect()
        self.announce()
        return self._receive()

    def collect(self) -> list[Message]:
        """Receive all messages in flight, keep them for later, and return them."""
        while self._under_way:
            self._early.append(self._receive())
        return list(self._early)

    def last_word(self, unsent: Message, error: TransportError) -> TransportError | None:
        """Return why an unreachable neighbour has left, if it has announced a flush before."""
        try:
            while "it is gone" in str(error):
                self._receive(unsent.batch_index, unsent.phase)
        except TransportError as told:
            return told if self._has_ended(unsent.batch_index, unsent.phase) else None
        return None

    def refill(self, messages: list[Message]) -> None:
        """Hold only these messages; messages in flight are received and dropped."""
        self.collect()
        self._early = deque(messages)
        self._neighbours_phase = 0
        self.loads += 1

    def _receive(self, wanted: int = 0, phase: int = 0) -> Message:
        """Return the next message that does not announce a flush.

        Raises:
            TransportError: the neighbour will send no message of the expected batch.
        """
        while True:
            if self._has_ended(wanted, phase):
                raise TransportError(
                    "the neighbour has taken fewer steps (it called flush before batch "
                    f"{self._neighbours_phase}, this rank went on); all ranks must take the same "
                    "steps"
                )
            message = self._receiver.receive()
            if not message.is_flush:
                self._under_way -= 1
                return message
            if message.phase == self.loads:
                self._neighbours_phase = message.batch_index

    def _has_ended(self, batch_index: int, phase: int) -> bool:
        return phase < self._neighbours_phase <= batch_index


class Worker:
    """Run one stage's actions.

    Args:
        stage: the arithmetic.
        activations: from the stage below, to the stage above; None at the ends.
        gradients: from the stage above, to the stage below; None at the ends.
        rank: of this process, for error messages; None where one process runs all stages.
        ties: the links of parameters that stages share, if there are any.
    """

    def __init__(
        self,
        stage: Stage,
        *,
        activations: tuple[Receiver | None, Sender | None],
        gradients: tuple[Receiver | None, Sender | None],
        rank: int | None = None,
        ties: TieLinks | None = None,
    ) -> None:
        self.stage = stage
        self.ties = ties
        self.clock = StageClock()
        self.place = f"stage {stage.stage_index}" + ("" if rank is None else f", rank {rank}")
        """How error messages call this worker."""
        self.phase = 0
        """The first (micro-)batch since the last flush."""
        self._schedule = stage.method.schedule
        self._offset = self._schedule.offset(stage.stage_index, stage.num_stages)
        self._inputs: dict[int, Tree] = {}
        self._beside: dict[int, int] = {}  # inputs of a batch in flight that were not received
        self._targets: dict[int, Any] = {}
        self._shares: dict[int, float] = {}  # in the loss
        self._portions: dict[int, float] = {}  # of the samples, on the first stage
        self._identities: dict[int, Identity] = {}
        # One process reads each batch once.
        self._compares = rank is not None and stage.num_stages > 1
        below, self._above = activations
        above, self._below = gradients
        self._activations = None if below is None else Inbox(below)
        self._gradients = None if above is None else Inbox(above)
        ends = (self._activations, -1, Kind.FORWARD), (self._gradients, 1, Kind.BACKWARD)
        self._senders = [
            (inbox, (stage.stage_index + step, kind))
            for inbox, step, kind in ends
            if inbox is not None
        ]
        for other, inbox in self._tie_inboxes():
            kind = Kind.FORWARD if other < stage.stage_index else Kind.BACKWARD
            self._senders.append((inbox, (other, kind)))

    @property
    def inboxes(self) -> list[Inbox]:
        """The links that end at this worker."""
        return [inbox for inbox, _ in self._senders]

    def disconnect(self) -> None:
        """Drop the links; no action can run after this."""
        self._activations = self._gradients = self._above = self._below = self.ties = None
        self._senders = []

    def _tie_inboxes(self) -> list[tuple[int, Inbox]]:
        return [] if self.ties is None else list(self.ties.inboxes.items())

    def offer(
        self, iteration: int, inputs: Tree, targets: Any, batch_id: BatchId | None = None
    ) -> None:
        """Take a batch from the user, and split it into the method's micro-batches.

        A batch that waits longer than its iteration (the schedule has an offset) is copied.

        Raises:
            StageError: the batch has fewer samples than there are micro-batches, the captured
                network cannot take its sizes, or a weight of its loss is negative.
        """
        try:
            self._offer(iteration, inputs, targets)
            if self._compares and (self.stage.is_first or self.stage.wants_targets):
                first = iteration * self._schedule.micro_batches
                parts = range(first, first + self._schedule.micro_batches)
                self._identities.update(dict.fromkeys(parts, identity_of(batch_id, targets)))
        except DelaygradError as error:
            raise type(error)(f"[{self.place}, iteration {iteration}] {error}") from error

    def offer_parts(
        self, iteration: int, inputs: list[Tree], targets: list[Any] | None, share: float
    ) -> None:
        """Take a batch that is split already.

        Args:
            inputs: of each micro-batch. Above the first stage they go beside what is received: the
                module takes the pair.
            targets: of each, where the stage wants targets.
            share: of each in the batch's loss.
        """
        first = iteration * self._schedule.micro_batches
        self._inputs.update(
            enumerate(inputs if self.stage.is_first else map(_copied, inputs), first)
        )
        if self.stage.is_first:
            self._portions.update(dict.fromkeys(range(first, first + len(inputs)), share))
        if targets is not None:
            self._targets.update(enumerate(targets, first))
            self._shares.update(dict.fromkeys(range(first, first + len(targets)), share))

    def _offer(self, iteration: int, inputs: Tree, targets: Any) -> None:
        num_parts = self._schedule.micro_batches
        first = iteration * num_parts
        if self.stage.is_first:
            pieces = parts_of(inputs, num_parts)
            taken = [part for part, _ in pieces]
            for part in taken:
                check_inputs(self.stage.module, part)
            self._inputs.update(self._waiting(first, taken))
            if num_parts > 1:
                self._portions.update(enumerate([portion for _, portion in pieces], first))
        if self.stage.wants_targets:
            try:
                parts = parts_of(targets, num_parts)
            except DelaygradError as error:
                raise type(error)(f"targets: {error}") from error
            loss = self.stage.loss
            shares = [share for _, share in parts] if loss is None else loss.shares(parts)
            self._targets.update(self._waiting(first, [part for part, _ in parts]))
            self._shares.update(enumerate(shares, first))

    def _waiting(self, first: int, parts: list[Any]) -> Iterable[tuple[int, Any]]:
        return enumerate(map(_copied, parts) if self._offset else parts, first)

    def announce(self, actions: Sequence[Action]) -> None:
        """Note what the neighbours' actions will send here."""
        for inbox, sender in self._senders:
            for action in actions:
                if sender == (action.stage_index, action.kind):
                    inbox.announce()

    def run(self, action: Action) -> Tensor | None:
        """Do one action; return the loss if this was the last stage's forward.

        Raises:
            WorkerError: the module, the loss or the optimizer failed; the cause is chained.
            DelaygradError: of the original kind; the message names the action.
        """
        kind, batch_index = action.kind, action.batch_index
        self.clock.start(kind, batch_index, self.stage.version)
        try:
            if kind is Kind.FORWARD:
                return self._forward(batch_index)
            if kind is Kind.BACKWARD:
                self._backward(batch_index)
            else:
                self.stage.update()
                self.clock.lap("update")
        except DelaygradError as error:
            raise type(error)(f"{self._where(action)} {error}") from error
        except Exception as error:
            message = f"{self._where(action)} {type(error).__name__}: {error}"
            raise WorkerError(message) from error
        return None

    def live_forward(self, batch_index: int) -> None:
        """Take a watched micro-batch forward at the live parameters, beside training."""
        inputs, inbox = self._inputs.get(batch_index), self._activations
        portion, watched = self._portions.get(batch_index, 1.0), self.stage.watched()
        if inbox is not None:
            received = inbox.take_aside()
            inputs, portion = received.activation(), received.share
        targets, share = self._targets.get(batch_index), self._shares.get(batch_index, 1.0)
        outputs = watched.forward(batch_index, inputs, targets, share, portion)
        if self._above is not None:
            self._above.send(Message.of_activation(batch_index, outputs, share=watched.portion))

    def live_backward(self, batch_index: int, *, is_lowest: bool) -> None:
        """Take it backward; send no further if this is the lowest stage that is asked for."""
        inbox = self._gradients
        grad_outputs = None if inbox is None else list(inbox.take_aside().tensors)
        grad_inputs = self.stage.watched().backward(batch_index, grad_outputs)
        if self._below is not None and not is_lowest:
            self._below.send(Message(batch_index, tuple(grad_inputs)))

    def predict(self, inputs: Tree) -> Tree:
        """See ``Evaluation.predict``."""
        try:
            return self.stage.evaluation.predict(inputs)
        except Exception as error:
            if self.stage.is_first:
                require_one_batch(error, inputs)
            raise

    def trace(self) -> StageTrace:
        """Return what the clock's last trace has recorded so far."""
        stage = self.stage
        return StageTrace(
            stage_index=stage.stage_index,
            delay=stage.delay,
            events=tuple(Event(*row) for row in self.clock.events),
            iterations=tuple(Iteration(*row) for row in self.clock.iterations),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the stage's state and the messages in flight to it."""
        return {
            **self.stage.state_dict(),
            "activations": [m.state_dict() for m in _collected(self._activations)],
            "gradients": [m.state_dict() for m in _collected(self._gradients)],
            "ties": {
                str(other): [m.state_dict() for m in inbox.collect()]
                for other, inbox in self._tie_inboxes()
            },
            "inputs": _saved(self._inputs),
            "beside": {str(batch): number for batch, number in self._beside.items()},
            "targets": _saved(self._targets),
            "shares": {str(batch): share for batch, share in self._shares.items()},
            "portions": {str(batch): portion for batch, portion in self._portions.items()},
            "identities": {str(batch): known for batch, known in self._identities.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` returned."""
        self.stage.load_state_dict(state)
        self._inputs = _restored(state["inputs"])
        self._beside = {int(batch): number for batch, number in state.get("beside", {}).items()}
        self._targets = _restored(state["targets"])
        self._shares = {int(batch): share for batch, share in state["shares"].items()}
        self._portions = {int(batch): part for batch, part in state.get("portions", {}).items()}
        self._identities = {int(batch): known for batch, known in state["identities"].items()}
        for inbox, name in ((self._activations, "activations"), (self._gradients, "gradients")):
            if inbox is not None:
                inbox.refill([Message.from_state_dict(entry) for entry in state[name]])
        for other, inbox in self._tie_inboxes():
            inbox.refill([Message.from_state_dict(entry) for entry in state["ties"][str(other)]])

    def _forward(self, batch_index: int) -> Tensor | None:
        stage = self.stage
        identity, scalars = self._identities.pop(batch_index, None), None
        if self._activations is None:
            inputs, portion = self._inputs.pop(batch_index), self._portions.pop(batch_index, 1.0)
        else:
            received = self._activations.take(batch_index, self.phase)
            inputs = received.activation()
            if self.ties is not None:
                inputs = self.ties.borrow(batch_index, self.phase, inputs)
            self.clock.lap("wait")
            if identity is not None:
                require_same(received.identity, identity)
            identity = received.identity
            scalars, portion = received.scalars, received.share
            if batch_index in self._inputs:
                beside = self._inputs.pop(batch_index)
                self._beside[batch_index] = len(flatten(beside)[0])
                inputs = (inputs, beside)
        if stage.signals is not None:
            stage.signals.enter(batch_index, scalars)
        targets, share = None, 1.0
        if stage.wants_targets:
            targets, share = self._targets.pop(batch_index), self._shares.pop(batch_index)
        try:
            outputs = stage.forward(batch_index, inputs, targets, share, portion)
        except Exception as error:
            if stage.is_first:
                require_one_batch(error, inputs)
            raise
        self.clock.lap("forward")
        if self._above is None:
            return outputs if isinstance(outputs, Tensor) else None
        scalars = None if stage.signals is None else stage.signals.upwards()
        num_bytes = 0
        if self.ties is not None:
            outputs, num_bytes = self.ties.lend(batch_index, self.phase, outputs)
        about = self.phase, identity, scalars, portion
        message = Message.of_activation(batch_index, outputs, *about)
        self._send(message, self._above, self._gradients, num_bytes)
        return None

    def _backward(self, batch_index: int) -> None:
        grad_outputs: list[Tensor | None] | None = None
        signals = self.stage.signals
        if self._gradients is not None:
            received = self._gradients.take(batch_index, self.phase)
            grad_outputs = list(received.tensors)
            if self.ties is not None:
                grad_outputs += self.ties.take_gradients(batch_index, self.phase)
            self.clock.lap("wait")
            if signals is not None and received.scalars is not None:
                signals.returned(received.scalars)
        grad_inputs = self.stage.backward(batch_index, grad_outputs)
        self.clock.lap("backward")
        if self._below is not None:
            scalars = None if signals is None else signals.downwards()
            tensors, num_bytes = (
                grad_inputs[: len(grad_inputs) - self._beside.pop(batch_index, 0)],
                0,
            )
            if self.ties is not None:
                tensors, num_bytes = self.ties.return_gradients(batch_index, self.phase, tensors)
            message = Message(batch_index, tuple(tensors), phase=self.phase, scalars=scalars)
            self._send(message, self._below, self._activations, num_bytes)

    def _send(
        self, message: Message, sender: Sender, answers: Inbox | None, more_bytes: int
    ) -> None:
        try:
            sender.send(message)
        except TransportError as error:
            told = None if answers is None else answers.last_word(message, error)
            if told is None:
                raise
            raise told from error
        self.clock.lap("send", message.num_bytes + more_bytes)

    def _where(self, action: Action) -> str:
        iteration = self._schedule.iteration_of(action, self.stage.num_stages)
        return f"[{self.place}, iteration {iteration}, action {action}]"


def _copied(tree: Tree) -> Tree:
    tensors, structure = flatten(tree)
    return unflatten(structure, [tensor.detach().clone() for tensor in tensors])


def _saved(waiting: dict[int, Tree]) -> list[dict[str, Any]]:
    return [Message.of_activation(batch, tree).state_dict() for batch, tree in waiting.items()]


def _restored(state: list[dict[str, Any]]) -> dict[int, Tree]:
    messages = map(Message.from_state_dict, state)
    return {message.batch_index: message.activation() for message in messages}


def _collected(inbox: Inbox | None) -> list[Message]:
    return [] if inbox is None else inbox.collect()
