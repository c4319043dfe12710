"""The tour's training job where PyTorch is not installed: a language model in plain Python.

usage: train.py --steps N [--saves-itself] | --measure

It learns to predict the next character of Shakespeare's sonnets from the last one to five: every
context has a row of weights in a hashed table (a maximum-entropy n-gram model), trained by
Adagrad. Equal N gives an equal last line: the digest of all weights. It knows nothing of Onefleet,
but with --saves-itself, for machines that cannot save it from outside.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import random
import sys
import time
import zlib
from array import array
from pathlib import Path

from own_checkpoint import OwnCheckpoint  # type: ignore[import-not-found]  # beside this file

ORDERS = (1, 2, 3, 5)  # lengths of the contexts
ROWS = 1 << 16  # contexts share these by their hash
RATE = 0.35
LINES = 24  # how many lines of loss a run prints
MEASURE_S = 0.6


class Model:
    """Weights and the squared gradients seen so far, ROWS x characters each."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.alphabet = sorted(set(text))
        self.width = len(self.alphabet)
        self.codes = [self.alphabet.index(c) for c in text]
        self.weights = array("d", [0.0]) * (ROWS * self.width)
        self.squares = array("d", [1e-2]) * (ROWS * self.width)

    def bases(self, context: str) -> list[int]:
        """Where the rows of a context's endings start."""
        hashes = (zlib.crc32(context[-n:].encode(), n) for n in ORDERS)
        return [h % ROWS * self.width for h in hashes]

    def chances(self, bases: list[int]) -> list[float]:
        """How likely each character comes next."""
        width, weights = self.width, self.weights
        rows = [weights[b : b + width] for b in bases]
        scores = list(map(sum, zip(*rows, strict=True)))
        top = max(scores)
        raw = [math.exp(s - top) for s in scores]
        total = sum(raw)
        return [r / total for r in raw]

    def learn(self, at: int) -> float:
        """One step on the character at this place; return its loss in nats."""
        width, weights, squares = self.width, self.weights, self.squares
        bases = self.bases(self.text[max(at - max(ORDERS), 0) : at])
        slope = self.chances(bases)
        target = self.codes[at]
        loss = -math.log(slope[target])
        slope[target] -= 1.0
        root = math.sqrt
        for base in bases:
            end = base + width
            grown = array("d", [s + g * g for s, g in zip(squares[base:end], slope, strict=True)])
            squares[base:end] = grown
            weights[base:end] = array(
                "d",
                [
                    w - RATE * g / root(s)
                    for w, g, s in zip(weights[base:end], slope, grown, strict=True)
                ],
            )
        return loss

    def dump(self, step: int, total: float) -> bytes:
        """All that the next step depends on."""
        return array("d", [step, total]).tobytes() + self.weights.tobytes() + self.squares.tobytes()

    def load(self, state: bytes) -> tuple[int, float]:
        """Take what `dump` gave; return its step and total."""
        numbers = array("d")
        numbers.frombytes(state)
        size = len(self.weights)
        self.weights, self.squares = numbers[2 : 2 + size], numbers[2 + size :]
        return int(numbers[0]), numbers[1]

    def verse(self, start: str, length: int) -> str:
        """A likely continuation of `start`; always the same one."""
        draw = random.Random(0)
        text = start
        for _ in range(length):
            chances = self.chances(self.bases(text[-max(ORDERS) :]))
            text += draw.choices(self.alphabet, [c**1.5 for c in chances])[0]
        return text


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def train(model: Model, steps: int, own: OwnCheckpoint) -> None:
    """Learn for so many steps, printing the mean loss LINES times."""
    every = max(steps // LINES, 1)
    left = own.load()
    if left is None:
        say(f"state {len(model.weights) * 2 * 8} bytes, {model.width} characters")
    done, total = model.load(left) if left else (0, 0.0)
    for step in range(done + 1, steps + 1):
        total += model.learn(1 + step % (len(model.text) - 1))
        if step % every == 0:
            say(f"step {step}/{steps} loss {total / every:.12f}")
            total = 0.0
        if own.asked:
            own.leave(model.dump(step, total))


def measure(model: Model) -> float:
    """Steps a second on this machine now."""
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < MEASURE_S:
        model.learn(1 + steps)
        steps += 1
    return steps / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--saves-itself", action="store_true")
    parser.add_argument("--measure", action="store_true")
    asked = parser.parse_args()
    model = Model(Path(__file__).with_name("sonnets.txt").read_text(encoding="ascii"))
    if asked.measure:
        say(f"{measure(model):.1f}")
        return
    train(model, asked.steps, OwnCheckpoint(asked.saves_itself))
    say("verse: " + " / ".join(model.verse("Shall I compare", 90).split("\n")))
    state = hashlib.sha256(model.weights.tobytes() + model.squares.tobytes())
    say(f"digest {state.hexdigest()}")


if __name__ == "__main__":
    main()
