"""What the ledger calls a promise."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.fleets import a_job

from onefleet.control.api.ledger import JUDGED_MS, promise_state
from onefleet.core.ledger import account
from onefleet.domain.ids import Instant
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Phase


@pytest.mark.parametrize(
    ("tier", "promised", "waited_ms", "state"),
    [
        (Tier.BASIC, False, JUDGED_MS, "none"),
        (Tier.STANDARD, False, JUDGED_MS, "waiting"),
        (Tier.STANDARD, True, 0, "kept"),
        (Tier.STANDARD, True, JUDGED_MS - 1, "early"),
        (Tier.STANDARD, True, JUDGED_MS, "broken"),
        (Tier.PREMIUM, True, JUDGED_MS, "broken"),
    ],
)
def test_a_promise_is_not_called_broken_while_a_job_has_only_begun(
    tier: Tier, promised: bool, waited_ms: int, state: str
) -> None:
    work = replace(a_job("j", tier=tier), submitted_at=Instant(0), promised=promised)
    now = Instant(waited_ms)
    assert promise_state(account(work, now), now) == state
    if not promised:
        ended = replace(account(work, now), phase=Phase.ENDED)
        assert promise_state(ended, now) == "none"
