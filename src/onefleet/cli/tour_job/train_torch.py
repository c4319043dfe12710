"""The tour's training job where PyTorch is installed: a small recurrent language model.

usage: train_torch.py --steps N [--saves-itself] | --measure

It learns to predict the next character of Shakespeare's sonnets with a GRU and AdamW. Equal N gives
an equal last line: the digest of all weights and moments. It knows nothing of Onefleet, but with
--saves-itself, for machines that cannot save it from outside.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
import time
from pathlib import Path

import torch
from own_checkpoint import OwnCheckpoint  # type: ignore[import-not-found]  # beside this file

LINES = 24  # how many lines of loss a run prints
HIDDEN = 256
BATCH, LENGTH = 8, 64
MEASURE_S = 0.6


class Trainer:
    """Embedding, two GRU layers, scores of the next character; the optimiser; the text."""

    def __init__(self, text: str) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)
        alphabet = sorted(set(text))
        self.codes = torch.tensor([alphabet.index(c) for c in text])
        self.embed = torch.nn.Embedding(len(alphabet), HIDDEN)
        self.core = torch.nn.GRU(HIDDEN, HIDDEN, num_layers=2, batch_first=True)
        self.head = torch.nn.Linear(HIDDEN, len(alphabet))
        self.model = torch.nn.ModuleList((self.embed, self.core, self.head))
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=2e-3)

    def learn(self) -> float:
        """One step on BATCH random places; return the mean loss in nats."""
        starts = torch.randint(len(self.codes) - LENGTH - 1, (BATCH, 1))
        window = self.codes[starts + torch.arange(LENGTH + 1)]
        scores = self.head(self.core(self.embed(window[:, :-1]))[0])
        loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), window[:, 1:].flatten())
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())

    def dump(self, step: int, total: float) -> bytes:
        """All that the next step depends on."""
        state = {
            "step": step,
            "total": total,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "chance": torch.get_rng_state(),
        }
        out = io.BytesIO()
        torch.save(state, out)
        return out.getvalue()

    def load(self, state: bytes) -> tuple[int, float]:
        """Take what `dump` gave; return its step and total."""
        left = torch.load(io.BytesIO(state), weights_only=True)
        self.model.load_state_dict(left["model"])
        self.optimiser.load_state_dict(left["optimiser"])
        torch.set_rng_state(left["chance"])
        return left["step"], left["total"]

    def digest(self) -> str:
        """SHA-256 over all weights and moments."""
        state = hashlib.sha256()
        for parameter in self.model.parameters():
            state.update(parameter.detach().numpy().tobytes())
            for moment in ("exp_avg", "exp_avg_sq"):
                state.update(self.optimiser.state[parameter][moment].numpy().tobytes())
        return state.hexdigest()


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def train(trainer: Trainer, steps: int, own: OwnCheckpoint) -> None:
    """Learn for so many steps, printing the mean loss LINES times."""
    every = max(steps // LINES, 1)
    left = own.load()
    if left is None:
        count = sum(p.numel() for p in trainer.model.parameters())
        say(f"state {count * 4 * 3} bytes, PyTorch {torch.__version__}")
    done, total = trainer.load(left) if left else (0, 0.0)
    for step in range(done + 1, steps + 1):
        total += trainer.learn()
        if step % every == 0:
            say(f"step {step}/{steps} loss {total / every:.12f}")
            total = 0.0
        if own.asked:
            own.leave(trainer.dump(step, total))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--saves-itself", action="store_true")
    parser.add_argument("--measure", action="store_true")
    asked = parser.parse_args()
    trainer = Trainer(Path(__file__).with_name("sonnets.txt").read_text(encoding="ascii"))
    if asked.measure:
        trainer.learn()
        started, steps = time.perf_counter(), 0
        while time.perf_counter() - started < MEASURE_S:
            trainer.learn()
            steps += 1
        say(f"{steps / (time.perf_counter() - started):.1f}")
        return
    train(trainer, asked.steps, OwnCheckpoint(asked.saves_itself))
    say(f"digest {trainer.digest()}")


if __name__ == "__main__":
    main()
