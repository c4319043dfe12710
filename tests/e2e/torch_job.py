"""PyTorch training as its documentation has it; not a line of it knows of Onefleet.

usage: torch_job.py STEPS FINISH

Alone, or data-parallel over gloo where WORLD_SIZE says so. Each step prints the bits of its loss;
the last line is the digest of all weights and moments. It takes its time until the file FINISH is
there, and does not come to its end before; with "-" it never waits.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
import warnings

warnings.simplefilter("ignore")

import torch  # noqa: E402
from torch import distributed  # noqa: E402

#: Before the first step; before others the longer the fewer are left, so that some always are.
PACE_S = 0.15
#: So many steps are left for when the file is there.
LAST = 20


def digest(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """SHA-256 of every bit that the next step would depend on."""
    found = hashlib.sha256()
    for value in model.parameters():
        found.update(value.detach().numpy().tobytes())
        for moment in ("exp_avg", "exp_avg_sq"):
            found.update(optimizer.state[value][moment].numpy().tobytes())
    return found.hexdigest()


def say(line: str) -> None:
    """Print a line in one write: with torchrun, workers print to the same file."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    steps, finish = int(sys.argv[1]), sys.argv[2]
    rank, workers = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    torch.manual_seed(7)
    net: torch.nn.Module = torch.nn.Sequential(
        torch.nn.Linear(64, 512), torch.nn.Tanh(), torch.nn.Dropout(0.1), torch.nn.Linear(512, 8)
    )
    if workers > 1:
        distributed.init_process_group("gloo")
        net = torch.nn.parallel.DistributedDataParallel(net)
    torch.manual_seed(rank)  # each drops other units
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    waits = finish != "-"
    for step in range(1, steps + 1):
        left = steps - step
        while waits and not os.path.exists(finish):
            time.sleep(PACE_S * steps / max(left, 1))
            if left >= LAST:
                break
        x = torch.randn(32, 64)
        loss = ((net(x) - x[:, :8] * 2) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        say(f"{step} {loss.item().hex()}")
    say(digest(net, optimizer))
    if workers > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
