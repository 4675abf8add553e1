from dataclasses import replace

import pytest
import torch

from delaygrad.methods import BP, DDG, Lookahead
from delaygrad.partition.costs import LayerCost, Storage, join
from delaygrad.planning.forecast import data_parallel, forecast
from delaygrad.planning.link import Link


def stages(num_stages, output_bytes=1000, parameter_bytes=400):
    return [
        LayerCost(
            name=str(k),
            forward_s=1.0,
            backward_s=2.0,
            update_s=0.5,
            output_bytes=output_bytes,
            gradient_bytes=output_bytes,
            parameter_bytes=parameter_bytes,
            trainable_bytes=parameter_bytes,
            optimizer_bytes=parameter_bytes,
            saved={k: Storage(600, 300)},
        )
        for k in range(num_stages)
    ]


def predict(num_stages=2, method=DDG(), link=None, speeds=None, **sizes):  # noqa: B008
    given = stages(num_stages, **sizes)
    return forecast(given, join(given), method, link, speeds=speeds)


def link(bandwidth=1e12, latency_s=0.0):
    return Link(bandwidth_bytes_per_s=bandwidth, latency_s=latency_s)


def test_without_a_link_balanced_stages_run_side_by_side():
    found = predict(4)
    assert found.iteration_s == pytest.approx(3.5) and found.exposed_s == pytest.approx(0, abs=1e-9)
    assert found.sent_bytes == 3 * 2 * 1000
    assert [stage.memory.graph_bytes for stage in found.stage_plans] == [
        4 * (600 + 0), 3 * 600, 2 * 600, 600
    ]  # fmt: skip
    assert found.data_parallel.worst_s == pytest.approx(3.0 + 2.0)


def test_a_hop_is_exposed_and_slack_hides_it_at_the_price_of_delay():
    found = predict(2, link=link(latency_s=1.0))
    # Two iterations go once around: both stages, but for the upper one's update, and two hops.
    assert found.iteration_s == pytest.approx((3.5 + 3.0 + 2.0) / 2)
    assert found.exposed_s == pytest.approx(0.75)
    assert found.iteration_by_slack_s == pytest.approx({0: 4.25, 1: 3.5, 2: 3.5})
    assert any("slack 1 hides the link" in s and "2 updates late" in s for s in found.advice)
    split = predict(2, method=DDG(micro_batches=2), link=link(latency_s=1.0))
    assert any("use slack 1: it hides the link" in sentence for sentence in split.advice)


def test_slack_without_need_is_advised_against():
    found = predict(2, method=DDG(slack=2), link=link(latency_s=0.01))
    assert any("slack 0 would do" in sentence for sentence in found.advice)


def test_a_link_that_takes_longer_than_a_stage_is_the_bottleneck():
    found = predict(2, link=link(bandwidth=100.0), parameter_bytes=10**6)
    assert found.iteration_s > 10.0
    assert any("the link is the bottleneck: 10,000 ms" in s for s in found.advice)
    assert not any("data parallelism" in sentence for sentence in found.advice)
    halved = predict(2, method=DDG(boundary_dtype=torch.bfloat16), link=link(bandwidth=100.0))
    assert halved.sent_bytes == 1000


def test_what_cannot_be_cut_evenly_is_sent_to_data_parallelism():
    assert not any("data parallelism" in sentence for sentence in predict(2).advice)
    light, heavy = stages(2)
    heavy = replace(heavy, backward_s=8.0)
    given = [light, heavy]  # 3.5 and 9.5; two replicas take 12 / 2 + 1 and what they send
    fast = forecast(given, join(given), DDG(), link(bandwidth=800.0))
    assert fast.data_parallel.worst_s == pytest.approx(8.0)
    assert any("data parallelism is faster here" in sentence for sentence in fast.advice)
    slow = forecast(given, join(given), DDG(), link(bandwidth=200.0))
    assert slow.data_parallel.best_s == pytest.approx(7.0)
    assert any("data parallelism may be faster" in sentence for sentence in slow.advice)


def test_bounds_of_data_parallelism_say_what_is_hidden():
    whole = join(stages(2, parameter_bytes=400))
    found = data_parallel(whole, 2, link(bandwidth=800.0))
    assert found.all_reduce_s == pytest.approx(1.0)
    assert found.best_s == pytest.approx(1.0 + 2.0 + 1.0)
    assert found.worst_s == pytest.approx(1.0 + 2.0 + 1.0 + 1.0)
    assert found.memory_bytes == 600 + 3 * 800


def test_slow_devices_and_recomputation_count():
    assert predict(2, speeds=[1.0, 0.5]).slowest_stage_s == pytest.approx(7.0)
    again = predict(3, method=DDG(recompute=True))
    assert [stage.backward_s for stage in again.stage_plans] == [3.0, 3.0, 2.0]
    assert again.iteration_s == pytest.approx(4.5)


def test_backpropagation_has_no_slack_to_choose():
    found = predict(3, method=BP())
    assert found.iteration_by_slack_s == {} and found.iteration_s == pytest.approx(9.5)
    assert [stage.memory.stale_parameter_bytes for stage in found.stage_plans] == [0, 0, 0]


def test_one_stage_has_no_rival():
    found = predict(1, link=link())
    assert found.iteration_s == pytest.approx(3.5) and found.advice == ()


def test_more_than_one_update_of_delay_is_advised_against():
    late = predict(16)
    assert any(
        "15 updates late" in s and "lookahead with 15 micro-batches" in s for s in late.advice
    )
    assert not any(sentence.startswith("use slack") for sentence in late.advice)
    assert not any("updates late" in sentence for sentence in predict(2).advice)
    assert not any("updates late" in s for s in predict(16, method=Lookahead(16)).advice)
