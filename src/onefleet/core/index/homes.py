"""Where suspended work may go on: at home, on a further copy of its image, or elsewhere.

At home, where its image lies, it goes on with nothing to fetch, and so it does where a copy lies.
Anywhere else its image has to come first. That is worth while if home stays full for long, and
nobody knows for how long it will. So it waits for as long as the way takes, and then goes where it
can: it never takes more than twice what it would have, had it known (the ski rental; Karlin et al.,
"Competitive snoopy caching", 1988). A home that cannot take it at all, because it is drained, is
not waited for; nor is one that is away, if others have the image.

What comes of it is kept with the work's place in its line (`lines.py`), so that works that may go
on in the same places are looked at together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from onefleet.core.index.fleet import Fleet
from onefleet.core.index.room import Room
from onefleet.core.policy import Policy
from onefleet.domain.fleet import CheckpointMode, DeviceKind
from onefleet.domain.ids import Instant, NodeId
from onefleet.domain.work import Image, Phase, Want, Work

#: The node of each rank.
Nodes = tuple[NodeId, ...]


class Kin(NamedTuple):
    """What a node has in common with those that can bring back what it saved.

    A process that was saved from outside has to find the same kind of processor or accelerator. A
    program that saved itself does not (product is empty).
    """

    mode: CheckpointMode
    product: str


class Home(NamedTuple):
    """Where suspended work may go on, the best first. nodes: home; copies: where further copies
    lie; both by rank. kin: of nodes elsewhere; None: nowhere else, not now."""

    nodes: Nodes
    copies: tuple[Nodes, ...] = ()
    kin: Kin | None = None


class Missing(NamedTuple):
    """nodes: who had an image, all of them away. until: when they are not waited for any more."""

    nodes: Nodes
    until: Instant


def home_of(work: Work, fleet: Fleet, now: Instant, policy: Policy) -> Home | None:
    """Where the work may be placed now; None: anywhere, there is no image to go on from."""
    image = work.image
    if work.phase is not Phase.SUSPENDED or image is None:
        return None
    wish = wish_of(work)
    if not all(node_id in fleet.usable for node_id in wish) or not _gets_to(wish, image, fleet):
        wish = ()  # it is not there any more, or not yet to be had there
    elif wish and not work.driven:
        return Home(wish)
    kind = work.demand.kind
    kin = kin_of(image.nodes, fleet, kind)
    first = [wish] if wish else []
    if kin is None:
        return Home(*_first_of([*first, image.nodes]))
    layers = zip(*image.copies, strict=False)
    copies = tuple(nodes for nodes in layers if kin_of(nodes, fleet, kind) == kin)
    at = roams_at(work, fleet, policy)
    ways = _first_of([*first, image.nodes, *copies])
    return Home(*ways, None if at is None or now < at else kin)


def _first_of(ways: Sequence[Nodes]) -> tuple[Nodes, tuple[Nodes, ...]]:
    return ways[0], tuple(ways[1:])


def wish_of(work: Work) -> Nodes:
    """The node of each rank where its owner, or the pool, wants it to go on; empty: no wish."""
    many = work.demand.workers if len(work.move_to) == 1 else 1
    return work.move_to * many


def roams_at(work: Work, fleet: Fleet, policy: Policy) -> Instant | None:
    """From when on suspended work may go on where its image is not; None: it cannot."""
    image, wait_ms = work.image, policy.resume_hold_ms
    if image is None or kin_of(image.nodes, fleet, work.demand.kind) is None:
        return None
    if not _is_there(image, fleet):
        return None
    if all(node_id in fleet.usable for node_id in image.nodes):
        wait_ms = max(wait_ms, way_ms(image, policy))
    return Instant(max(work.phase_since + wait_ms, work.not_before))


def missing_image(work: Work, fleet: Fleet, policy: Policy) -> Missing | None:
    """Of a work whose newest image nobody has who is there: who had it, of the rank that is given
    up first. The rooms are settled.

    If the image before it can be had, that is when as much time has passed as going back to it
    throws away: so it costs at most twice what it would have, had one known whether the node comes
    back (the ski rental).
    """
    image, before = work.image, work.image_before
    if image is None:
        return None
    holders = [image.holders(rank) for rank in range(len(image.nodes))]
    absent = [nodes for nodes in holders if all(fleet.is_absent(node_id) for node_id in nodes)]
    if not absent:
        return None
    wait_ms = policy.image_wait_ms
    if before is not None and _can_be_had(before, fleet, work.demand.kind):
        wait_ms = min(wait_ms, image.ran_ms - before.ran_ms)

    def away_since(nodes: Nodes) -> int:
        known = (fleet.nodes[node_id] for node_id in nodes if node_id in fleet.nodes)
        return max(work.phase_since, *map(fleet.lease_of, known), 0)

    first = min(absent, key=away_since)
    return Missing(first, Instant(away_since(first) + wait_ms))


def image_nodes(work: Work) -> Nodes:
    """The nodes that matter for where suspended work goes on: those that have its image, and those
    where it is wanted."""
    if work.phase is not Phase.SUSPENDED or work.image is None:
        return ()
    image = work.image
    holders = (node_id for rank in range(len(image.nodes)) for node_id in image.holders(rank))
    return tuple(dict.fromkeys((*work.move_to, *holders)))


def awaits_of(work: Work, fleet: Fleet, policy: Policy) -> Nodes:
    """Nodes that work which waits, or is being saved, is on its way to, and those without which it
    can never go on."""
    if work.want is not Want.RUN or work.phase not in (Phase.SAVING, Phase.SUSPENDED):
        return ()
    lies = image_nodes(work)
    stuck = bool(lies) and roams_at(work, fleet, policy) is None
    return lies if stuck else tuple(dict.fromkeys(work.move_to))


def way_ms(image: Image, policy: Policy) -> int:
    """How long it takes to bring an image to other nodes, as far as is known."""
    return policy.move_fixed_ms + image.size_bytes // max(policy.move_bytes_per_ms, 1)


def kin_of(nodes: Nodes, fleet: Fleet, kind: DeviceKind) -> Kin | None:
    """What other nodes need in common with all of these; None: nothing would do."""
    found = dict.fromkeys(_kin(fleet, node_id, kind) for node_id in nodes)
    return next(iter(found)) if len(found) == 1 else None


def is_in_reach(room: Room, kin: Kin, kind: DeviceKind) -> bool:
    """Whether images can be fetched by this node and brought back on its devices."""
    left = room.kinds.get(kind)
    if left is None or not room.node.address or room.node.checkpoint_mode is not kin.mode:
        return False
    return not kin.product or kin.product == left.bay.product


def _kin(fleet: Fleet, node_id: NodeId, kind: DeviceKind) -> Kin | None:
    node = fleet.nodes.get(node_id)
    if node is None or node.checkpoint_mode is CheckpointMode.NONE:
        return None
    if node.checkpoint_mode is CheckpointMode.COOPERATIVE:
        return Kin(node.checkpoint_mode, "")
    product = fleet.products[node_id].get(kind)
    return Kin(node.checkpoint_mode, product) if product else None


def _can_be_had(image: Image, fleet: Fleet, kind: DeviceKind) -> bool:
    """Whether work can go on from this image by now, once there is room for it."""
    kin = kin_of(image.nodes, fleet, kind)
    if kin is None:
        return all(node_id in fleet.usable for node_id in image.nodes)
    if not _is_there(image, fleet):
        return False
    return any(is_in_reach(fleet.rooms[node_id], kin, kind) for node_id in fleet.usable)


def _gets_to(nodes: Nodes, image: Image, fleet: Fleet) -> bool:
    """Whether each of these nodes, by rank, has the image or can fetch it."""
    return all(
        node_id in image.holders(rank)
        or (node_id in fleet.open and any(of in fleet.open for of in image.holders(rank)))
        for rank, node_id in enumerate(nodes)
    )


def _is_there(image: Image, fleet: Fleet) -> bool:
    """Whether the image of every rank can be fetched from somewhere."""
    ranks = range(len(image.nodes))
    return all(any(node in fleet.open for node in image.holders(rank)) for rank in ranks)
