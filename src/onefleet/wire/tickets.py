"""What one node needs to be let in by another: a ticket for one thing, made by the control plane.

Every node is told the key of its own door and nobody else's. A ticket is a code over the name of
what it opens, made with the key of the door: its bearer can open that and nothing else, and no
node can make one for another.
"""

from __future__ import annotations

import hashlib
import hmac

from onefleet.domain.ids import ImageId, NodeId, WorkId


def door_key(secret: str, node_id: NodeId) -> str:
    """The key of a node's door. secret: the control plane's own."""
    return _code(secret, f"door/{node_id}")


def ticket(key: str, name: str) -> str:
    """Opens what has this name at the door of this key."""
    return _code(key, name)


def opens(key: str, name: str, shown: str) -> bool:
    """Whether what was shown is the ticket for this name."""
    return hmac.compare_digest(ticket(key, name).encode(), shown.encode())


def image_name(work_id: WorkId, rank: int, image: ImageId) -> str:
    """The name of one worker's image."""
    return f"image/{work_id}/{rank}/{image}"


def log_name(work_id: WorkId, rank: int) -> str:
    """The name of what one worker has printed."""
    return f"log/{work_id}/{rank}"


def _code(key: str, text: str) -> str:
    return hmac.new(
        key.encode(), text.encode("utf-8", "surrogateescape"), hashlib.sha256
    ).hexdigest()
