"""The queue's rules over SQLite and PostgreSQL, with a clock in hand: places, lateness, undo, deadlines, checks."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from dipole.errors import Conflict, Forbidden, Gone, InvalidInput, NotFound, Overloaded, Unauthorized
from dipole.protocol.schemas import PendingRanking, Ranking
from dipole_ratings.api.dependencies import RatingParts
from dipole_ratings.database.tables import AnswerRow, ImageRow, LeaseRow, SubsetRow, TaskRow
from dipole_ratings.queue.answers import GivenAnswer
from dipole_ratings.queue.images import prepare_image
from dipole_ratings.queue.leases import TakenLease
from dipole_ratings.queue.retention import drop_old_tasks
from dipole_ratings.queue.task_options import TaskOptions
from dipole_ratings.queue.tasks import TaskRequest

from .conftest import HandClock, MakeQueue
from .people import grey

DAY_S = 86400.0


def request(levels: Sequence[int] = (10, 20, 30, 40), prompt: str = "a", **more: Any) -> TaskRequest:
    options = {name: more.pop(name) for name in list(more) if name in TaskOptions.model_fields}
    key = more.pop("key", None)
    return TaskRequest(
        prompt=prompt,
        candidate_ids=[f"c{index}" for index in range(len(levels))],
        images=[prepare_image(grey(level)) for level in levels],
        options=TaskOptions(**options),
        job=options.get("job", "job-1"),
        digest=f"{prompt}{levels}",
        idempotency_key=key,
        **more,
    )


def hire(parts: RatingParts, count: int = 1) -> list[int]:
    return [parts.raters.start_session(parts.raters.invite_rater(None, None)[1])[0].seq for _ in range(count)]


def take(parts: RatingParts, rater: int) -> TakenLease:
    lease = parts.leases.take_lease(rater)
    assert lease is not None
    return lease


def in_order(parts: RatingParts, lease: TakenLease, *, reverse: bool = False) -> GivenAnswer:
    """By brightness: the position of a distinct level is that of the request."""
    with parts.database.reading() as session:
        row = session.scalars(sa.select(LeaseRow).where(LeaseRow.id == lease.id)).one()
        places = session.execute(
            sa.text("SELECT place, position FROM shown_images WHERE lease_seq = :lease"), {"lease": row.seq}
        ).all()
    labels = [lease.images[place].label for place, _ in sorted(places, key=lambda each: each[1], reverse=not reverse)]
    return GivenAnswer(tiers=[[label] for label in labels], dwell_ms=5000)


def answer(parts: RatingParts, rater: int, lease: TakenLease, key: str | None = None, **how: Any) -> Any:
    return parts.answers.submit_answer(rater, lease.id, in_order(parts, lease, **how), key)


def rows(parts: RatingParts, table: Any) -> Sequence[Any]:
    with parts.database.reading() as session:
        return session.scalars(sa.select(table)).all()


def ranks(state: Ranking | PendingRanking) -> list[int | None]:
    assert isinstance(state, Ranking), state
    return [item.rank for item in state.results]


@pytest.fixture
def queue(make_queue: MakeQueue, ratings_url: str) -> tuple[RatingParts, HandClock]:
    return make_queue(ratings_url)


# ---- tasks ----------------------------------------------------------------------------------------------------------


def test_an_answer_becomes_a_ranking(queue: tuple[RatingParts, HandClock]) -> None:
    """Ranks in the request's order, equal images share one, and the document is the same every time."""
    parts, _ = queue
    pending = parts.tasks.submit_task(request((10, 40, 30, 40)))
    assert isinstance(pending, PendingRanking)
    (rater,) = hire(parts)
    lease = take(parts, rater)
    assert len(lease.images) == 3, "equal images are shown once"
    answer(parts, rater, lease, reverse=False)
    state = parts.tasks.get_ranking(pending.id)
    assert ranks(state) == [4, 2, 1, 2], "positions of distinct images are 10, 40, 30; the later is the better here"
    assert state == parts.tasks.get_ranking(pending.id)


def test_two_jobs_that_ask_the_same_at_once_share_the_answers(queue: tuple[RatingParts, HandClock]) -> None:
    """The job that matters more is shown; when that task is cancelled, the other is."""
    parts, _ = queue
    first = parts.tasks.submit_task(request((10, 20, 30)))
    second = parts.tasks.submit_task(request((30, 10, 20), job="job-2"))
    one, two = hire(parts, 2)
    assert [parts.leases.count_waiting(rater) for rater in (one, two)] == [1, 1]
    answer(parts, one, take(parts, one))
    assert parts.leases.take_lease(two) is None
    assert ranks(parts.tasks.get_ranking(first.id)) == [3, 2, 1]
    assert ranks(parts.tasks.get_ranking(second.id)) == [1, 3, 2]

    kept = parts.tasks.submit_task(request(prompt="b"))
    dropped = parts.tasks.submit_task(request(prompt="b", job="job-2", priority=5))
    assert parts.leases.count_waiting(one) == 1
    take(parts, one)
    parts.tasks.cancel_task(dropped.id)
    answer(parts, two, take(parts, two))
    assert ranks(parts.tasks.get_ranking(kept.id)) == [4, 3, 2, 1]


def test_what_people_said_once_serves_whoever_asks_again(queue: tuple[RatingParts, HandClock]) -> None:
    """The same prompt, images and instructions in any order and of any job; not for more ratings, or another prompt."""
    parts, _ = queue
    first = parts.tasks.submit_task(request((10, 20, 30)))
    (rater,) = hire(parts)
    answer(parts, rater, take(parts, rater))
    before = parts.tasks.get_ranking(first.id)
    again = parts.tasks.submit_task(request((30, 10, 20), job="job-2"))
    assert isinstance(before, Ranking)
    assert isinstance(again, Ranking)
    assert [item.score for item in again.results] == [before.results[place].score for place in (2, 0, 1)]
    assert again.usage["reused"]
    assert parts.leases.take_lease(rater) is None
    for other in (
        request((10, 20, 30), min_ratings=2),
        request((10, 20, 30), prompt="b"),
        request((10, 20, 30), instructions="i"),
        request((10, 20, 31)),
    ):
        assert isinstance(parts.tasks.submit_task(other), PendingRanking)


def test_a_repeated_request_is_the_same_task(queue: tuple[RatingParts, HandClock]) -> None:
    """Under one key; with another body it is refused, and a cancelled task gives the key free."""
    parts, _ = queue
    first = parts.tasks.submit_task(request(key="k"))
    assert parts.tasks.submit_task(request(key="k")).id == first.id
    with pytest.raises(InvalidInput, match="another body"):
        parts.tasks.submit_task(request(prompt="b", key="k"))
    assert parts.tasks.cancel_task(first.id).status == "cancelled"
    assert parts.tasks.cancel_task(first.id).status == "cancelled"
    assert parts.tasks.submit_task(request(key="k")).id != first.id


def test_the_same_request_twice_at_once_is_one_task(queue: tuple[RatingParts, HandClock]) -> None:
    """As a trainer sends it to two replicas after a timeout."""
    parts, _ = queue
    for number in range(5):
        together = request(prompt=f"p{number}", key=f"k{number}")
        with ThreadPoolExecutor(4) as pool:
            assert len({state.id for state in pool.map(parts.tasks.submit_task, [together] * 4)}) == 1
    assert len(rows(parts, TaskRow)) == 5


def test_one_image_is_not_asked_about(queue: tuple[RatingParts, HandClock]) -> None:
    parts, _ = queue
    for levels in ((10,), (10, 10)):
        state = parts.tasks.submit_task(request(levels))
        assert isinstance(state, Ranking)
        assert {(item.rank, item.error.code if item.error else None) for item in state.results} == {(None, "one_image")}


def test_a_large_group_is_split_and_whole_again(queue: tuple[RatingParts, HandClock]) -> None:
    """Nine images, four at a time: every subset is asked for once, and the order of all nine comes out."""
    parts, _ = queue
    pending = parts.tasks.submit_task(request(tuple(range(10, 100, 10))))
    (rater,) = hire(parts)
    shown = 0
    while (lease := parts.leases.take_lease(rater)) is not None:
        assert len(lease.images) == 4
        answer(parts, rater, lease)
        shown += 1
    assert shown == len(rows(parts, SubsetRow)) == 3
    state = parts.tasks.get_ranking(pending.id)
    assert isinstance(state, Ranking)
    assert state.results[-1].rank == 1
    assert state.results[0].rank == 9


def test_more_tasks_than_may_wait_are_refused(make_queue: MakeQueue, tmp_path: Any) -> None:
    parts, _ = make_queue(f"sqlite:///{tmp_path}/r.db", ratings_max_pending=1)
    parts.tasks.submit_task(request())
    with pytest.raises(Overloaded):
        parts.tasks.submit_task(request(prompt="b"))


def test_deadlines_close_a_task_partial_or_drop_it(queue: tuple[RatingParts, HandClock]) -> None:
    """Partial: what answers there are; none at all is null with a reason. Drop: the ranking fails, and says why."""
    parts, clock = queue
    rated, bare = (
        parts.tasks.submit_task(
            request(prompt=prompt, min_ratings=2, max_ratings=2, deadline_s=60, on_timeout="partial")
        )
        for prompt in "ab"
    )
    dropped = parts.tasks.submit_task(request(prompt="c", min_ratings=2, deadline_s=60, on_timeout="drop"))
    (rater,) = hire(parts)
    answer(parts, rater, take(parts, rater))
    clock.time += 61
    assert parts.leases.take_lease(rater) is None
    assert parts.tasks.close_due_tasks() == 3
    assert ranks(parts.tasks.get_ranking(rated.id)) == [4, 3, 2, 1]
    empty = parts.tasks.get_ranking(bare.id)
    assert isinstance(empty, Ranking)
    assert {item.error.code for item in empty.results if item.error} == {"no_answers"}
    failed = parts.tasks.get_ranking(dropped.id)
    assert isinstance(failed, PendingRanking)
    assert failed.status == "failed"
    assert failed.error is not None
    assert failed.error.code == "deadline"


def test_raters_who_disagree_are_joined_by_another(queue: tuple[RatingParts, HandClock]) -> None:
    """Up to max_ratings; then null with the reason."""
    parts, _ = queue
    pending = parts.tasks.submit_task(request(min_ratings=2, max_ratings=3))
    one, two, three, four = hire(parts, 4)
    answer(parts, one, take(parts, one))
    answer(parts, two, take(parts, two), reverse=True)
    assert isinstance(parts.tasks.get_ranking(pending.id), PendingRanking)
    lease = take(parts, three)
    assert parts.leases.take_lease(four) is None
    answer(parts, three, lease)
    state = parts.tasks.get_ranking(pending.id)
    assert isinstance(state, Ranking)
    assert state.usage["ratings"] == 3
    assert {item.error.code for item in state.results if item.error} == {"disagreement"}


def test_a_jobs_priority_is_what_is_shown_first(queue: tuple[RatingParts, HandClock]) -> None:
    """What the request says, then what the operator says of the job: of what waits and of what comes."""
    parts, _ = queue
    parts.tasks.submit_task(request(prompt="old"))
    parts.tasks.submit_task(request(prompt="urgent", priority=5))
    parts.tasks.submit_task(request(prompt="other", job="job-2"))
    one, two, three = hire(parts, 3)
    assert take(parts, one).prompt == "urgent"
    parts.statistics.set_job_priority("job-2", 9)
    assert take(parts, two).prompt == "other"
    parts.tasks.submit_task(request(prompt="other too", job="job-2"))
    assert take(parts, three).prompt == "other too"


# ---- leases ---------------------------------------------------------------------------------------------------------


def test_nobody_holds_two_or_is_given_what_others_hold(queue: tuple[RatingParts, HandClock]) -> None:
    parts, _ = queue
    parts.tasks.submit_task(request())
    one, two = hire(parts, 2)
    lease = take(parts, one)
    assert take(parts, one).id == lease.id
    assert parts.leases.take_lease(two) is None
    assert parts.leases.count_waiting(two) == 0
    parts.leases.release_lease(one, lease.id)
    parts.leases.release_lease(one, lease.id)
    assert take(parts, two).id != lease.id


def test_a_lease_lapses_is_extended_and_ends_for_good(queue: tuple[RatingParts, HandClock]) -> None:
    """Ten minutes from the last sign of life, an hour at most; what lapsed is free for others."""
    parts, clock = queue
    parts.tasks.submit_task(request())
    one, two = hire(parts, 2)
    lease = take(parts, one)
    clock.time += 599
    assert parts.leases.extend_lease(one, lease.id)[1] == 600
    for _ in range(10):
        clock.time += 500
        try:
            parts.leases.extend_lease(one, lease.id)
        except Gone:
            break
    assert clock.time - 1_790_000_000 <= 3600 + 500
    with pytest.raises(Gone):
        parts.leases.extend_lease(one, lease.id)
    assert take(parts, two).id != lease.id
    with pytest.raises(NotFound):
        parts.leases.extend_lease(two, lease.id)


@pytest.mark.parametrize("taken", [False, True])
def test_a_late_answer_counts_if_a_place_is_left(queue: tuple[RatingParts, HandClock], taken: bool) -> None:
    """And is kept as surplus where somebody else has it by now."""
    parts, clock = queue
    pending = parts.tasks.submit_task(request())
    one, two = hire(parts, 2)
    late = take(parts, one)
    clock.time += 601
    if taken:
        take(parts, two)
    assert answer(parts, one, late).counted is not taken
    assert isinstance(parts.tasks.get_ranking(pending.id), PendingRanking if taken else Ranking)
    assert [row.counted for row in rows(parts, AnswerRow)] == [not taken]


def test_the_late_answer_to_a_task_that_one_holds_again_ends_the_new_lease(
    queue: tuple[RatingParts, HandClock],
) -> None:
    """One rater's answer counts once, whichever lease it came by."""
    parts, clock = queue
    parts.tasks.submit_task(request(min_ratings=2))
    (rater,) = hire(parts)
    late = take(parts, rater)
    clock.time += 601
    again = take(parts, rater)
    assert again.id != late.id
    assert answer(parts, rater, late).counted
    with pytest.raises(Gone):
        answer(parts, rater, again)
    assert parts.leases.take_lease(rater) is None


def test_the_order_of_images_is_a_raters_own_and_stays(queue: tuple[RatingParts, HandClock]) -> None:
    """Shuffled by task and rater: given back and taken again it is the same; image ids are new every time."""
    parts, _ = queue
    for number in range(6):
        parts.tasks.submit_task(request(prompt=f"p{number}", min_ratings=2))
    one, two = hire(parts, 2)
    orders = []
    for rater in (one, two):
        found = []
        for _ in range(6):
            lease = take(parts, rater)
            first = in_order(parts, lease).tiers
            parts.leases.release_lease(rater, lease.id)
            again = take(parts, rater)
            assert in_order(parts, again).tiers == first
            assert not {image.id for image in lease.images} & {image.id for image in again.images}
            answer(parts, rater, again)
            found.append(first)
        orders.append(found)
    assert orders[0] != orders[1]


# ---- answers --------------------------------------------------------------------------------------------------------


def test_a_retried_submission_is_one_answer(queue: tuple[RatingParts, HandClock]) -> None:
    """The same key gives the first receipt; another key, or none, is a conflict and keeps nothing."""
    parts, _ = queue
    parts.tasks.submit_task(request())
    (rater,) = hire(parts)
    lease = take(parts, rater)
    first = answer(parts, rater, lease, "k")
    assert answer(parts, rater, lease, "k") == first
    for key in ("other", None):
        with pytest.raises(Conflict):
            answer(parts, rater, lease, key)
    assert len(rows(parts, AnswerRow)) == 1


@pytest.mark.parametrize(
    ("tiers", "unranked", "named"),
    [
        ([["A"], ["B"]], ["C"], "D"),
        ([["A"], ["A"]], ["B", "C", "D"], "A"),
        ([["A"]], ["A", "B", "C", "D"], "A"),
        ([["E"]], ["A", "B", "C", "D"], "E"),
        ([], ["A", "B", "C", "D"], "tiers"),
    ],
)
def test_every_label_stands_in_one_place(
    make_queue: MakeQueue, tmp_path: Any, tiers: Any, unranked: Any, named: str
) -> None:
    parts, _ = make_queue(f"sqlite:///{tmp_path}/r.db")
    parts.tasks.submit_task(request())
    (rater,) = hire(parts)
    lease = take(parts, rater)
    with pytest.raises(InvalidInput, match=named):
        parts.answers.submit_answer(rater, lease.id, GivenAnswer(tiers=tiers, unranked=unranked), None)
    assert answer(parts, rater, lease).counted, "a refusal leaves the lease as it was"


def test_what_is_unranked_is_unknown_and_not_the_worst(queue: tuple[RatingParts, HandClock]) -> None:
    """Another rater is asked, and scores come once all are compared."""
    parts, _ = queue
    pending = parts.tasks.submit_task(request(max_ratings=2))
    one, two = hire(parts, 2)
    lease = take(parts, one)
    order = in_order(parts, lease).tiers
    partial = GivenAnswer(tiers=order[:3], unranked=order[3])
    assert parts.answers.submit_answer(one, lease.id, partial, None).counted
    assert isinstance(parts.tasks.get_ranking(pending.id), PendingRanking)
    answer(parts, two, take(parts, two))
    assert ranks(parts.tasks.get_ranking(pending.id)) == [4, 3, 2, 1]


def test_a_skip_takes_no_place_and_none_usable_does(queue: tuple[RatingParts, HandClock]) -> None:
    parts, _ = queue
    pending = parts.tasks.submit_task(request())
    one, two = hire(parts, 2)
    lease = take(parts, one)
    assert parts.answers.submit_answer(one, lease.id, GivenAnswer(skip="not my style"), None).counted
    assert parts.leases.take_lease(one) is None, "what was skipped is not shown again"
    lease = take(parts, two)
    parts.answers.submit_answer(two, lease.id, GivenAnswer(none_usable=True), None)
    state = parts.tasks.get_ranking(pending.id)
    assert isinstance(state, Ranking)
    assert {item.error.code for item in state.results if item.error} == {"none_usable"}


def test_an_answer_is_undone_until_it_is_delivered(make_queue: MakeQueue, ratings_url: str) -> None:
    """Its lease is live again, its place the rater's, a lease taken meanwhile is given back; nothing is deleted."""
    parts, clock = make_queue(ratings_url, ratings_undo_s=10)
    pending = parts.tasks.submit_task(request())
    parts.tasks.submit_task(request(prompt="next"))
    one, two = hire(parts, 2)
    lease = take(parts, one)
    kept = answer(parts, one, lease, "k1")
    clock.time += 9
    assert isinstance(parts.tasks.get_ranking(pending.id), PendingRanking), "it may be undone for ten seconds"
    following = take(parts, one)
    with pytest.raises(NotFound):
        parts.answers.undo_answer(two, kept.id)
    again = parts.answers.undo_answer(one, kept.id)
    assert (again.id, again.images) == (lease.id, lease.images)
    assert take(parts, one).id == lease.id
    assert take(parts, two).prompt == "next", "the lease that was taken meanwhile is free"
    with pytest.raises(Gone):
        answer(parts, one, following)
    clock.time += 20
    assert isinstance(parts.tasks.get_ranking(pending.id), PendingRanking)
    second = answer(parts, one, again, "k2")
    assert [(row.revision, row.undone_at is None) for row in rows(parts, AnswerRow)] == [(1, False), (2, True)]
    clock.time += 10
    assert ranks(parts.tasks.get_ranking(pending.id)) == [4, 3, 2, 1]
    with pytest.raises(Conflict, match="delivered"):
        parts.answers.undo_answer(one, second.id)


def test_an_undo_after_raters_disagreed_asks_for_no_more_than_before(make_queue: MakeQueue, tmp_path: Any) -> None:
    parts, clock = make_queue(f"sqlite:///{tmp_path}/r.db", ratings_undo_s=10)
    pending = parts.tasks.submit_task(request(min_ratings=2, max_ratings=3))
    one, two, three = hire(parts, 3)
    answer(parts, one, take(parts, one))
    wrong = answer(parts, two, take(parts, two), reverse=True)
    lease = parts.answers.undo_answer(two, wrong.id)
    answer(parts, two, lease)
    assert parts.leases.take_lease(three) is None
    clock.time += 10
    assert ranks(parts.tasks.get_ranking(pending.id)) == [4, 3, 2, 1]


# ---- raters ---------------------------------------------------------------------------------------------------------


def test_gold_and_repeats_look_like_any_task_and_count_for_none(make_queue: MakeQueue, ratings_url: str) -> None:
    """What others agreed on, and what one said before, in another order: they weigh the rater, and take no place."""
    parts, _ = make_queue(ratings_url, ratings_min=2, ratings_max=2)
    one, two = hire(parts, 2)
    done = [parts.tasks.submit_task(request(prompt=f"p{number}")) for number in range(8)]
    for _ in done:
        for rater in (one, two):
            answer(parts, rater, take(parts, rater))
    parts.tasks.close_due_tasks()
    assert {parts.tasks.get_ranking(each.id).status for each in done} == {"completed"}

    settings = parts.settings.model_copy(update={"ratings_gold_share": 0.5, "ratings_repeat_share": 0.5})
    checked = RatingParts.over(type(parts.context)(parts.database, settings, parts.context.clock, parts.context.dice))
    assert checked.leases.take_lease(one) is None, "nobody is kept busy with checks alone"
    waiting = parts.tasks.submit_task(request(prompt="new"))
    (three,) = hire(parts)
    for rater, reverse in ((one, True), (three, False), (three, True)):
        lease = take(checked, rater)
        assert lease.prompt != "new"
        assert answer(checked, rater, lease, reverse=reverse).counted
    purposes = [(row.rater_seq, row.purpose, row.counted) for row in rows(parts, AnswerRow)][16:]
    assert purposes[0] == (one, "repeat", False)
    assert purposes[1:] == [(three, "gold", False)] * 2
    assert isinstance(parts.tasks.get_ranking(waiting.id), PendingRanking)
    found = {figures.rater: figures for figures in parts.judge.list_raters()}
    by_seq = sorted(found.values(), key=lambda each: each.answers, reverse=True)
    assert [each.repeats_agreed for each in by_seq].count(0.0) == 1
    assert [each.gold_right for each in by_seq].count(0.5) == 1
    parts.judge.refresh_weights()
    assert min(each.weight for each in parts.judge.list_raters()) < 1.0


def test_a_paused_rater_gives_back_what_is_held(queue: tuple[RatingParts, HandClock]) -> None:
    parts, _ = queue
    parts.tasks.submit_task(request())
    invitation, token = parts.raters.invite_rater("Ann", None)
    rater, _ = parts.raters.start_session(token)
    take(parts, rater.seq)
    parts.raters.pause_rater(invitation.rater, True)
    with pytest.raises(Forbidden):
        parts.leases.take_lease(rater.seq)
    (other,) = hire(parts)
    take(parts, other)
    parts.raters.pause_rater(invitation.rater, False)
    assert parts.leases.take_lease(rater.seq) is None


def test_a_paused_rater_takes_nothing_back(make_queue: MakeQueue, tmp_path: Any) -> None:
    """What is taken back would be held."""
    parts, _ = make_queue(f"sqlite:///{tmp_path}/r.db", ratings_undo_s=10)
    parts.tasks.submit_task(request())
    invitation, token = parts.raters.invite_rater("Ann", None)
    rater, _ = parts.raters.start_session(token)
    kept = answer(parts, rater.seq, take(parts, rater.seq), "k1")
    parts.raters.pause_rater(invitation.rater, True)
    with pytest.raises(Forbidden):
        parts.answers.undo_answer(rater.seq, kept.id)
    assert [row.undone_at for row in rows(parts, AnswerRow)] == [None]


def test_a_link_ends_with_its_sessions(queue: tuple[RatingParts, HandClock]) -> None:
    """Revoked or expired; what the rater held is free. Tokens are stored as hashes."""
    parts, clock = queue
    parts.tasks.submit_task(request())
    invitation, token = parts.raters.invite_rater("Ann", 3600)
    rater, session = parts.raters.start_session(token)
    take(parts, rater.seq)
    assert parts.raters.find_session(session) == rater
    parts.raters.revoke_invitation(invitation.id)
    with pytest.raises(Unauthorized):
        parts.raters.find_session(session)
    with pytest.raises(Unauthorized):
        parts.raters.start_session(token)
    (other,) = hire(parts)
    take(parts, other)
    expiring, token = parts.raters.invite_rater(None, 3600)
    _, session = parts.raters.start_session(token)
    clock.time += 3601
    with pytest.raises(Unauthorized):
        parts.raters.find_session(session)
    states = {each.id: each.state for each in parts.raters.list_invitations()}
    assert states[invitation.id] == "revoked"
    assert states[expiring.id] == "expired"


def test_a_forgotten_rater_leaves_answers_and_nothing_else(queue: tuple[RatingParts, HandClock]) -> None:
    """No name, link, session, free text or time of looking; a pseudonym that leads to nobody."""
    parts, _ = queue
    pending = [parts.tasks.submit_task(request(prompt=prompt)) for prompt in "ab"]
    invitation, token = parts.raters.invite_rater("Ann", None)
    rater, session = parts.raters.start_session(token)
    answer(parts, rater.seq, take(parts, rater.seq))
    parts.answers.submit_answer(rater.seq, take(parts, rater.seq).id, GivenAnswer(skip="as Ann I", dwell_ms=9), None)
    parts.raters.forget_rater(invitation.rater)
    with pytest.raises(Unauthorized):
        parts.raters.find_session(session)
    with pytest.raises(NotFound):
        parts.raters.forget_rater(invitation.rater)
    assert parts.raters.list_invitations() == []
    assert parts.judge.list_raters() == []
    assert [(row.skip_reason, row.dwell_ms) for row in rows(parts, AnswerRow)] == [(None, None)] * 2
    with parts.database.reading() as session_:
        for row in session_.execute(sa.text("SELECT * FROM raters")).mappings():
            assert "Ann" not in str(dict(row))
            assert invitation.rater not in str(dict(row))
    assert ranks(parts.tasks.get_ranking(pending[0].id)) == [4, 3, 2, 1]


def test_old_tasks_go_with_their_images_and_answers(queue: tuple[RatingParts, HandClock]) -> None:
    """An image that a younger task has too stays."""
    parts, clock = queue
    old = parts.tasks.submit_task(request((10, 20, 30)))
    (rater,) = hire(parts)
    answer(parts, rater, take(parts, rater))
    parts.tasks.close_due_tasks()
    clock.time += 366 * DAY_S
    young = parts.tasks.submit_task(request((30, 40), prompt="b"))
    assert drop_old_tasks(parts.context) == 1
    assert drop_old_tasks(parts.context) == 0
    with pytest.raises(NotFound):
        parts.tasks.get_ranking(old.id)
    assert [row.id for row in rows(parts, TaskRow)] == [young.id]
    assert rows(parts, AnswerRow) == []
    assert len(rows(parts, ImageRow)) == 2
