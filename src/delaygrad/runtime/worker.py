"""A worker runs the actions of one stage: receive what an action needs, send its result."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

from torch import Tensor

from delaygrad.boundary import Tree, flatten
from delaygrad.errors import DelaygradError, TransportError, WorkerError
from delaygrad.records import Event, Iteration, StageClock, StageTrace
from delaygrad.runtime.batch_identity import BatchId, require_same
from delaygrad.runtime.failing_layer import failing_layer
from delaygrad.runtime.inbox import Inbox
from delaygrad.runtime.offered import OfferedBatches
from delaygrad.runtime.tie_links import TieLinks
from delaygrad.schedule import Action, Kind
from delaygrad.stage import Stage, require_one_batch
from delaygrad.transport import Message, Receiver, Sender


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
        # One process reads each batch once: there is nothing to compare.
        self.offered = OfferedBatches(stage, compares=rank is not None and stage.num_stages > 1)
        """What the user has given."""
        self._beside: dict[int, int] = {}  # inputs of a batch in flight that were not received
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
        """Take a batch from the user; see ``OfferedBatches.offer``."""
        try:
            self.offered.offer(iteration, inputs, targets, batch_id)
        except DelaygradError as error:
            raise type(error)(f"[{self.place}, iteration {iteration}] {error}") from error

    def announce(self, actions: Counter[tuple[int, Kind]]) -> None:
        """Note what the neighbours' actions, counted by stage and kind, will send here."""
        for inbox, sender in self._senders:
            inbox.announce(actions[sender])

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
                if self.stage.average(batch_index):
                    self.clock.lap("average")
                self.stage.update()
                self.clock.lap("update")
        except DelaygradError as error:
            raise type(error)(f"{self._where(action)} {error}") from error
        except Exception as error:
            layer = failing_layer(self.stage.module, error)
            message = f"{self._where(action)} {layer}{type(error).__name__}: {error}"
            raise WorkerError(message) from error
        return None

    def live_forward(self, batch_index: int) -> None:
        """Take a watched micro-batch forward at the live parameters, beside training."""
        given, watched = self.offered.look_at(batch_index), self.stage.watched()
        inputs, portion = given.inputs, given.portion
        if self._activations is not None:
            received = self._activations.take_aside()
            inputs, portion = received.activation(), received.share
        outputs = watched.forward(batch_index, inputs, given.targets, given.share, portion)
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
            "offered": self.offered.state_dict(),
            "beside": {str(batch): number for batch, number in self._beside.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` returned."""
        self.stage.load_state_dict(state)
        self.offered.load_state_dict(state["offered"])
        self._beside = {int(batch): number for batch, number in state["beside"].items()}
        for inbox, name in ((self._activations, "activations"), (self._gradients, "gradients")):
            if inbox is not None:
                inbox.refill([Message.from_state_dict(entry) for entry in state[name]])
        for other, inbox in self._tie_inboxes():
            inbox.refill([Message.from_state_dict(entry) for entry in state["ties"][str(other)]])

    def _forward(self, batch_index: int) -> Tensor | None:
        stage, given = self.stage, self.offered.take(batch_index)
        inputs, identity, portion, scalars = given.inputs, given.identity, given.portion, None
        if self._activations is not None:
            received = self._activations.take(batch_index, self.phase)
            inputs = received.activation()
            if self.ties is not None:
                inputs = self.ties.borrow(batch_index, self.phase, inputs)
            self.clock.lap("wait")
            if identity is not None:
                require_same(received.identity, identity)
            identity, portion, scalars = received.identity, received.share, received.scalars
            if given.inputs is not None:
                self._beside[batch_index] = len(flatten(given.inputs)[0])
                inputs = (inputs, given.inputs)
        if stage.signals is not None:
            stage.signals.enter(batch_index, scalars)
        try:
            outputs = stage.forward(batch_index, inputs, given.targets, given.share, portion)
        except Exception as error:
            if stage.is_first:
                require_one_batch(error, inputs)
            raise
        self.clock.lap("forward")
        if self._above is None:
            return cast(Tensor, outputs)
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
        if signals is not None and self.stage.average(batch_index):
            self.clock.lap("average")
        if self._below is not None:
            scalars, num_bytes = None if signals is None else signals.downwards(), 0
            tensors = grad_inputs[: len(grad_inputs) - self._beside.pop(batch_index, 0)]
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


def _collected(inbox: Inbox | None) -> list[Message]:
    return [] if inbox is None else inbox.collect()
