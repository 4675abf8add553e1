"""One training step under torch's Schedule1F1B and under ScheduleDDG, timed in turn:

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

dist.init_process_group("gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
torch.set_num_threads(1)  # this process's share of the host's cores
torch.manual_seed(0)  # the same network and data on every rank
inputs, targets = torch.randn(128, 256), torch.randint(10, (128,))
blocks = [nn.Sequential(nn.Linear(256, 256), nn.ReLU()) for _ in range(32)]
model = nn.Sequential(*blocks, nn.Linear(256, 10))
cuts = [str(32 * stage_index // world_size) for stage_index in range(1, world_size)]
module = dg.split(model, world_size, cuts=cuts)[rank]


class Trainer:
    def __init__(self, kind, n_microbatches):
        self.name = f"{kind.__name__}, n_microbatches={n_microbatches}"
        self.stage = PipelineStage(copy.deepcopy(module), rank, world_size, torch.device("cpu"))
        self.schedule = kind(self.stage, n_microbatches, loss_fn=nn.functional.cross_entropy)
        self.optimizer = torch.optim.SGD(self.stage.submod.parameters(), lr=0.01, momentum=0.9)
        self.seconds = []

    def step(self):
        self.optimizer.zero_grad()
        self.schedule.step(
            *([inputs] if self.stage.is_first else []),
            target=targets if self.stage.is_last else None,
            return_outputs=False,
        )
        self.optimizer.step()

    def take_time(self, iterations=15):
        dist.barrier()
        start = time.perf_counter()
        for _ in range(iterations):
            self.step()
        self.seconds.append((time.perf_counter() - start) / iterations)


trainers = [Trainer(Schedule1F1B, 4), Trainer(dg.ScheduleDDG, 4), Trainer(dg.ScheduleDDG, 1)]
for _ in range(6):
    for trainer in trainers:
        trainer.take_time()
seconds = [statistics.median(trainer.seconds[1:]) for trainer in trainers]  # the first warms up
for trainer, own in zip(trainers, seconds, strict=True):
    if rank == 0:
        print(f"{trainer.name}: {1e3 * own:.1f} ms, {seconds[0] / own:.2f} times the throughput")
    if isinstance(trainer.schedule, dg.ScheduleDDG):
        for _ in trainer.schedule.flush():  # every stage has then used every batch
            trainer.optimizer.step()
        trainer.schedule.close()
dist.destroy_process_group()
