"""FGD as its authors ran it: a baseline for replays (Weng et al., ATC 2023, their simulator).

`scores.Gradient` follows the paper: it learns the mix and compares exactly. The artifact differs in
three ways, and its published figures come from them: it takes the commonest shapes of the whole
trace beforehand, turns the growth of fragmentation into one of a hundred scores with a sigmoid, and
takes any of the nodes that have the best score. The last two spread pods over nodes that are nearly
as good, which holds almost a point more than the exact comparison does.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import exp

from onefleet.core.packing import MILLI, Ask, Host, Space
from onefleet.core.packing.mix import Fragmentation

#: The part of a trace's pods whose shapes are typical, in percent.
TYPICAL = 95

#: The best score of a node.
SCORE_MAX = 100


@dataclass(frozen=True, slots=True)
class ArtifactGradient:
    """The growth of fragmentation, rounded as in the artifact. measure: over the typical pods."""

    measure: Fragmentation
    name: str = "fgd"

    @classmethod
    def over(cls, asks: Iterable[Ask]) -> ArtifactGradient:
        """Over the commonest of all asks; their memory makes no difference."""
        counts = Counter(replace(ask, memory=0) for ask in asks)
        enough = counts.total() * TYPICAL
        typical: dict[Ask, int] = {}
        seen = 0
        for ask, count in counts.most_common():
            if 100 * seen >= enough:
                break
            typical[ask] = count
            seen += count
        return cls(Fragmentation(typical))

    def cost(self, space: Space, ask: Ask, after: Space) -> int:
        growth = (self.measure.of(after) - self.measure.of(space)) / self.measure.total
        return -int(SCORE_MAX / (1 + exp(growth / MILLI)))


def in_random_order(hosts: Sequence[Host], rng: random.Random) -> list[Host]:
    """The same nodes, renamed so that a packer, which takes the first of equals, takes any."""
    names = [host.node for host in hosts]
    rng.shuffle(names)
    return [replace(host, node=name) for host, name in zip(hosts, names, strict=True)]
