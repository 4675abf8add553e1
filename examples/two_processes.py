"""Two stages of one network in two processes:

torchrun --nproc-per-node 2 examples/two_processes.py
"""

from pathlib import Path

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn

import delaygrad as dg

dist.init_process_group("gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
torch.set_num_threads(1)  # this process's share of the host's cores
torch.manual_seed(0)  # the same network on every rank

images, labels = load_digits(return_X_y=True)
inputs, targets = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
model = nn.Sequential(
    nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
)
stages = dg.split(model, world_size, cuts=["2"])  # the same cuts on every rank
with dg.DistributedPipeline(
    stages[rank],
    nn.functional.cross_entropy,
    lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    method=dg.DDG(),
) as pipe:
    for _ in range(20):
        for batch in torch.randperm(1500).split(50):  # the same order on every rank
            pipe.step(inputs[batch], targets[batch])  # inputs: rank 0, targets: the last rank
    pipe.flush()
    outputs = pipe.predict(inputs[1500:])  # on the last rank; None elsewhere
    state = dg.gather(pipe)  # the whole model's state_dict on rank 0; {} elsewhere
if outputs is not None:
    accuracy = (outputs.argmax(1) == targets[1500:]).float().mean().item()
    print(f"accuracy on {len(outputs)} digits held out: {accuracy:.1%}")

if state:
    path = Path("runs/two_processes.pt")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    model.load_state_dict(torch.load(path))
    accuracy = (model(inputs[1500:]).argmax(1) == targets[1500:]).float().mean().item()
    print(f"accuracy of the whole model, loaded: {accuracy:.1%}")
dist.destroy_process_group()
