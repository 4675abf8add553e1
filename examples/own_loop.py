"""A training loop that may be killed at any time, and continues where it was; the same bits result.

python examples/own_loop.py                                 one process for both stages
torchrun --nproc-per-node 2 examples/own_loop.py            a process for each

Kill it, and give the same command again, or the other one: both read the same checkpoints. A run
that has ended has no batches in flight, so it continues with another number of stages too:

torchrun --nproc-per-node 3 examples/own_loop.py --iterations 1200
"""

import argparse
import hashlib
import os

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn

import delaygrad as dg

parser = argparse.ArgumentParser()
parser.add_argument("--folder", default="runs/own_loop")
parser.add_argument("--iterations", type=int, default=600)
parser.add_argument("--save-every", type=int, default=50)
parser.add_argument("--stages", type=int, default=2, help="in one process")
options = parser.parse_args()

distributed = int(os.environ.get("WORLD_SIZE", 1)) > 1  # set by torchrun
if distributed:
    dist.init_process_group("gloo")
torch.set_num_threads(1)  # equal bits need equal numbers of threads
torch.manual_seed(0)  # the same network on every rank

images, labels = load_digits(return_X_y=True)
inputs, targets = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
model = nn.Sequential(
    nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.1), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
)
num_stages = int(os.environ["WORLD_SIZE"]) if distributed else options.stages
stages = dg.split(model, num_stages, cuts={1: [], 2: ["3"], 3: ["2", "4"]}[num_stages])


def make_optimizer(params):
    return torch.optim.AdamW(params, lr=1e-3)


def batches(seed, offset):
    """Yield batches for ever, from any place in the order that the seed gives."""
    while True:
        epoch, place = divmod(offset, 30)
        order = torch.randperm(1500, generator=torch.Generator().manual_seed(seed + epoch))
        batch = order[50 * place : 50 * (place + 1)]
        yield inputs[batch], targets[batch]
        offset += 1


loss_fn = nn.functional.cross_entropy
if distributed:
    pipe = dg.DistributedPipeline(stages[dist.get_rank()], loss_fn, make_optimizer)
else:
    pipe = dg.LocalPipeline(stages, loss_fn, make_optimizer)
with pipe:
    position = pipe.load_newest(options.folder) or {"seed": 7, "offset": 0}
    data = batches(**position)
    while pipe.iteration < options.iterations:
        loss = pipe.step(*next(data))
        position["offset"] += 1
        if pipe.iteration % options.save_every == 0:
            pipe.save(options.folder, extra=position)
            if loss is not None:  # the process of the last stage
                print(f"iteration {pipe.iteration}: loss {loss.item():.4f}", flush=True)
    pipe.flush()
    pipe.save(options.folder, extra=position)
    state = dg.gather(pipe)  # the whole model on rank 0, {} elsewhere
if state:
    model.load_state_dict(state)
    model.eval()
    accuracy = (model(inputs[1500:]).argmax(1) == targets[1500:]).float().mean().item()
    content = b"".join(tensor.numpy().tobytes() for tensor in state.values())
    print(f"accuracy on 297 digits held out: {accuracy:.1%}")
    print(f"sha256 of the parameters: {hashlib.sha256(content).hexdigest()}")
if distributed:
    dist.destroy_process_group()
