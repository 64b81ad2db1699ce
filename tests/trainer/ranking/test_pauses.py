"""Pauses that double end at their bound, however often they doubled: a ranking may take days."""

from __future__ import annotations

from dipole.stack.supervisor import MAX_BACKOFF_S, restart_delay_s
from dipole_trainer.ranking.celery_ranker import MAX_RESEND_PAUSE_S, resend_pause_s


def test_a_request_is_sent_for_as_long_as_it_takes() -> None:
    assert [resend_pause_s(10.0, sent) for sent in (1, 2, 3, 4, 10_000)] == [10, 20, 40, 60, MAX_RESEND_PAUSE_S]
    assert resend_pause_s(90.0, 10_000) == 90


def test_a_process_is_started_again_for_as_long_as_it_dies() -> None:
    assert [restart_delay_s(deaths) for deaths in (0, 1, 10_000)] == [0.25, 0.5, MAX_BACKOFF_S]
