"""The tour's burst: a premium tenant asks many things at once, and what came of each."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from onefleet.cli.progress import Bar
from onefleet.cli.speech import Answer, speak
from onefleet.wire.client import Client

QUESTIONS = (
    "Name three colours.",
    "What is the capital of Italy?",
    "Why is the sky blue?",
    "Write a line about the sea.",
    "How many days has a week?",
    "What do bees make?",
    "Name a planet with rings.",
    "What is ice made of?",
)
TOKENS_MAX = 32


@dataclass(frozen=True, slots=True)
class Burst:
    """The answers, in the order of the questions."""

    answers: tuple[Answer, ...]

    @property
    def first_s(self) -> float:
        """When the earliest first token came, since the burst began."""
        return min(a.first_s for a in self.answers)

    @property
    def total_s(self) -> float:
        return max(a.total_s for a in self.answers)

    @property
    def tokens(self) -> int:
        return sum(a.completion_tokens for a in self.answers)


def ask_all(client: Client, model: str, bar: Bar) -> Burst:
    """Ask all QUESTIONS at once. Raises the first error; no answer is dropped."""
    with ThreadPoolExecutor(len(QUESTIONS)) as threads:
        asked = [
            threads.submit(
                speak,
                client,
                {
                    "model": model,
                    "messages": [{"role": "user", "content": question}],
                    "max_tokens": TOKENS_MAX,
                    "temperature": 0,
                },
            )
            for question in QUESTIONS
        ]
        for count, done in enumerate(as_completed(asked), start=1):
            done.result()
            bar.to(count / len(asked), "the burst is answered")
    return Burst(tuple(future.result() for future in asked))
