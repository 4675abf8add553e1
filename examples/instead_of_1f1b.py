"""Two stages under torch's Schedule1F1B, and the same two stages under delaygrad, timed in turn:

torchrun --nproc-per-node 2 examples/instead_of_1f1b.py
"""

import copy
import statistics
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

import delaygrad as dg


def make_optimizer(parameters):
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


dist.init_process_group("gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
torch.set_num_threads(1)  # this process's share of the host's cores
torch.manual_seed(0)  # the same network and data on every rank
inputs, targets = torch.randn(128, 256), torch.randint(10, (128,))
blocks = [nn.Sequential(nn.Linear(256, 256), nn.ReLU()) for _ in range(32)]
model = nn.Sequential(*blocks, nn.Linear(256, 10))
cuts = [str(32 * stage_index // world_size) for stage_index in range(1, world_size)]
module = dg.split(model, world_size, cuts=cuts)[rank]

# torch: four micro-batches, so that the stages overlap; the gradient is backpropagation's.
stage = PipelineStage(copy.deepcopy(module), rank, world_size, torch.device("cpu"))
schedule = Schedule1F1B(stage, n_microbatches=4, loss_fn=nn.functional.cross_entropy)
optimizer = make_optimizer(stage.submod.parameters())


def step_1f1b():
    optimizer.zero_grad()
    schedule.step(
        *([inputs] if stage.is_first else []),
        target=targets if stage.is_last else None,
        return_outputs=False,
    )
    optimizer.step()


# delaygrad: whole batches. It calls the optimizer itself, once a stage's delayed gradient is there.
pipe = dg.DistributedPipeline(module, nn.functional.cross_entropy, make_optimizer)


def step_ddg():
    pipe.step(inputs, targets)


def seconds_per_iteration(step, iterations=15):
    dist.barrier()
    start = time.perf_counter()
    for _ in range(iterations):
        step()
    return (time.perf_counter() - start) / iterations


times = {step_1f1b: [], step_ddg: []}
for round_index in range(6):
    for step, seconds in times.items():
        measured = seconds_per_iteration(step)
        if round_index:  # the first warms up
            seconds.append(measured)
pipe.flush()  # every stage has now used every batch
pipe.close()
if rank == 0:
    torch_ms, ours_ms = (1e3 * statistics.median(seconds) for seconds in times.values())
    print(f"Schedule1F1B {torch_ms:.1f} ms, delaygrad {ours_ms:.1f} ms per iteration: ", end="")
    print(f"{torch_ms / ours_ms:.2f} times the throughput")
dist.destroy_process_group()
