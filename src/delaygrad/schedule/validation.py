"""Check that a sequence of actions trains a network."""

from __future__ import annotations

from collections.abc import Iterable

from delaygrad.errors import ScheduleError
from delaygrad.schedule.action import Action, Kind


def validate(actions: Iterable[Action], num_stages: int, micro_batches: int = 1) -> None:
    """Raise unless every action finds what it needs and every batch is used once by each stage.

    The rules, for stage k and micro-batch s: ``kFs`` after ``(k-1)Fs``; ``kBs`` after ``kFs`` and
    ``(k+1)Bs``; ``kUs`` after ``kBs``; F and B exactly once for every micro-batch, U exactly once
    for the last of every batch, after the B of all before it and of none after.

    Args:
        actions: of all stages, in the order in which they run.
        num_stages: K.
        micro_batches: M per update.

    Raises:
        ScheduleError: names the first action that breaks a rule, and the rule.

    Example:
        >>> validate(map(Action.parse, ["0F0", "0B0"]), num_stages=1)
        Traceback (most recent call last):
        ...
        delaygrad.errors.ScheduleError: unfinished batch (missing: 0U0)
    """
    done: set[Action] = set()
    for action in actions:
        if not 0 <= action.stage_index < num_stages:
            raise ScheduleError(f"no such stage (action: {action}, stages: {num_stages})")
        if action in done:
            raise ScheduleError(f"action appears twice (action: {action})")
        for needed in _needs(action, num_stages, micro_batches):
            if needed not in done:
                raise ScheduleError(f"action too early (action: {action}, needs: {needed})")
        done.add(action)
    batches = {action.batch_index for action in done}
    everything = (
        Action(k, kind, batch) for batch in sorted(batches) for k in range(num_stages)
        for kind in Kind if kind is not Kind.UPDATE or _ends_a_batch(batch, micro_batches)
    )  # fmt: skip
    missing = [str(action) for action in everything if action not in done]
    if missing:
        raise ScheduleError(f"unfinished batch (missing: {', '.join(missing)})")


def _needs(action: Action, num_stages: int, micro_batches: int) -> list[Action]:
    k, batch = action.stage_index, action.batch_index
    if action.kind is Kind.FORWARD:
        return [Action(k - 1, Kind.FORWARD, batch)] if k > 0 else []
    if action.kind is Kind.UPDATE:
        if not _ends_a_batch(batch, micro_batches):
            raise ScheduleError(
                f"update within a batch (action: {action}, micro-batches: {micro_batches})"
            )
        return [Action(k, Kind.BACKWARD, batch - j) for j in range(micro_batches)]
    needed = [Action(k, Kind.FORWARD, batch)]
    if k < num_stages - 1:
        needed.append(Action(k + 1, Kind.BACKWARD, batch))
    if batch % micro_batches == 0 and batch > 0:
        needed.append(Action(k, Kind.UPDATE, batch - 1))  # its gradients are not mixed with these
    return needed


def _ends_a_batch(batch_index: int, micro_batches: int) -> bool:
    return (batch_index + 1) % micro_batches == 0
