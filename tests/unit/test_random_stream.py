"""Each stage draws from its own stream, and nobody else notices."""

from __future__ import annotations

import torch

from delaygrad.random_stream import RandomStream, stage_seed

CPU = torch.device("cpu")


def draw(stream: RandomStream, number: int = 3) -> list[float]:
    with stream.drawing():
        return torch.rand(number).tolist()


def test_a_stream_without_a_seed_draws_what_the_process_would_have_drawn() -> None:
    torch.manual_seed(3)
    expected = torch.rand(5).tolist()
    torch.manual_seed(3)
    stream = RandomStream(CPU, None)
    assert draw(stream) + torch.rand(2).tolist() == expected


def test_a_seeded_stream_draws_from_a_generator_of_its_own() -> None:
    torch.manual_seed(3)
    stream = RandomStream(CPU, stage_seed(3, 2))
    expected = torch.rand(6, generator=torch.Generator().manual_seed(stage_seed(3, 2))).tolist()
    assert draw(stream, 6) == expected


def test_a_seeded_stream_leaves_the_process_alone_even_when_they_fail() -> None:
    stream = RandomStream(CPU, stage_seed(3, 1))
    before = torch.get_rng_state()
    draw(stream)
    try:
        with stream.drawing():
            torch.rand(3)
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert torch.equal(torch.get_rng_state(), before)


def test_the_numbers_go_on_where_they_stopped_whatever_the_process_draws() -> None:
    torch.manual_seed(3)
    whole = draw(RandomStream(CPU, stage_seed(3, 1)), 6)
    torch.manual_seed(3)
    stream = RandomStream(CPU, stage_seed(3, 1))
    first = draw(stream)
    torch.rand(100)
    torch.manual_seed(99)
    assert first + draw(stream) == whole


def test_replaying_draws_again_and_moves_neither_stream_nor_process() -> None:
    for seed in (None, 3):
        stream = RandomStream(CPU, seed)
        start = stream.state()
        first = draw(stream)
        outside = torch.get_rng_state()
        with stream.replaying(start):
            assert torch.rand(3).tolist() == first
        assert torch.equal(torch.get_rng_state(), outside)
        following = draw(stream)
        stream.set_state(start)
        assert draw(stream) + draw(stream) == first + following


def test_a_taken_state_does_not_move_with_the_stream() -> None:
    for seed in (None, 3):
        stream = RandomStream(CPU, seed)
        state = stream.state()
        kept = {name: value.clone() for name, value in state.items()}
        draw(stream)
        assert all(torch.equal(state[name], kept[name]) for name in kept)


def test_seeds_differ_between_stages_and_are_valid_for_any_seed() -> None:
    for seed in (0, 1, 2**63 - 1, 2**64 - 1):
        seeds = [stage_seed(seed, k) for k in range(64)]
        assert len({seed, *seeds}) == 65
        assert all(0 <= s < 2**63 for s in seeds)
        torch.Generator().manual_seed(seeds[-1])


def test_a_state_of_another_device_may_be_set() -> None:
    for seed in (None, 3):
        stream = RandomStream(CPU, seed)
        start = stream.state()
        first = draw(stream)
        stream.set_state({**start, "cuda": torch.zeros(16, dtype=torch.uint8)})
        assert draw(stream) == first
