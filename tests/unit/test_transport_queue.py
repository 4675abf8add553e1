"""Messages, and the link within one process."""

from __future__ import annotations

import pytest
import torch
from exact import assert_same

from delaygrad.errors import TransportError
from delaygrad.runtime.inbox import Inbox
from delaygrad.transport import Message, Queue


def test_messages_come_in_the_order_they_were_sent() -> None:
    queue = Queue()
    for batch in (3, 4):
        queue.send(Message(batch, ()))
    assert [queue.receive().batch_index for _ in range(2)] == [3, 4]
    with pytest.raises(TransportError, match="no message is in the queue"):
        queue.receive()


def test_an_activation_is_unpacked_as_it_was_packed() -> None:
    tree = {"x": torch.ones(2, requires_grad=True), "rest": (None, [torch.tensor(3)])}
    assert_same(Message.of_activation(0, tree).activation(), tree)


def test_a_message_survives_its_state_and_keeps_no_memory_of_it() -> None:
    sent = Message(7, (torch.ones(2, requires_grad=True), None, torch.arange(3)), "s")
    state = sent.state_dict()
    restored = Message.from_state_dict(state)
    assert (restored.batch_index, restored.structure) == (7, "s")
    assert_same(list(restored.tensors), list(sent.tensors))
    state["tensors"][2].zero_()
    assert_same(restored.tensors[2], torch.arange(3))


def filled_inbox(batches: list[int]) -> Inbox:
    queue = Queue()
    inbox = Inbox(queue)
    for batch in batches:
        queue.send(Message(batch, ()))
        inbox.announce()
    return inbox


def test_an_inbox_collects_what_is_under_way_and_still_hands_it_out_in_order() -> None:
    inbox = filled_inbox([1, 2, 3])
    assert inbox.take(1, 0).batch_index == 1
    assert [m.batch_index for m in inbox.collect()] == [2, 3]
    assert [m.batch_index for m in inbox.collect()] == [2, 3]
    assert [inbox.take(b, 0).batch_index for b in (2, 3)] == [2, 3]
    assert inbox.collect() == []


def test_a_refilled_inbox_has_forgotten_what_was_under_way() -> None:
    inbox = filled_inbox([1, 2])
    inbox.refill([Message(9, ())])
    assert [m.batch_index for m in inbox.collect()] == [9]
    assert inbox.take(9, 0).batch_index == 9


def test_a_message_of_another_batch_means_out_of_step() -> None:
    inbox = filled_inbox([1])
    with pytest.raises(TransportError, match=r"out of step \(expected batch: 2, received: 1\)"):
        inbox.take(2, 0)
