"""Groups on their way: whom to ask, which answers are in or due, what a missing one means. Clocks are passed in.

Both rankers keep their books here, so a policy means the same in a test and over Celery:
- a group finishes when every reward has answered or failed by its policy, in whichever order that happens;
- an optional reward that fails, or is past its deadline, is left out of that group with the reason;
- a required one that fails for good, or is past its deadline, raises RewardUnavailable;
- an answer that came but scores too few candidates is a failure of that group alone, also of a required reward: a
  resumed job would get the same answer. So is a ranking that is still pending (202) at its deadline: its endpoint is
  there, and people may be asleep;
- an optional reward that lets a deadline pass, and has answered nothing since that group was submitted, is silent:
  groups no longer wait for it, unless nothing else is trained on. It is still asked for a few of them, and its first
  answer, however late, ends that. A late answer is recorded.
- a reward with `shows` is asked once the reward that chooses has answered, for the candidates that it chose.
A candidate without an image is a null with its reason, and a group that has no other a failure of its own: no reward
is asked, and none is to blame. Deadlines count from the question. The first answer wins; later ones, and answers of
forgotten groups, are ignored.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from dipole.errors import RewardUnavailable
from dipole_trainer.ranking.groups import SILENT, CandidateGroup, RankedGroup, RewardResult
from dipole_trainer.ranking.selection import select_shown
from dipole_trainer.spec import RewardSpec

# codes of a group's own failures: answers that came and give no order, that are pending at the deadline, or that
# nothing was asked for
GROUP_FAILURES = ("too_few_scores", "not_finite", "late", "not_asked")
MAX_LATE_GROUPS = 8  # groups that a silent reward is asked for at a time; their images are held for it

OnRanked = Callable[[CandidateGroup, str, RewardResult], None]


def failed_result(candidates: int, reason: str, *, seconds: float = 0.0) -> RewardResult:
    """Nothing usable from a reward: every score None and the reason said."""
    return RewardResult(scores=(None,) * candidates, failure=reason, seconds=seconds)


def apply_policy(
    spec: RewardSpec, candidates: int, scores: Sequence[float | None], errors: Mapping[int, str] | None = None
) -> RewardResult:
    """A reward's scores judged by its policy: wrong counts and too few valid scores are failures.

    A score that is missing or not finite becomes None with a reason, never 0. `min_valid` counts at most the
    group's own size, so that a group of one image can be evaluated.
    """
    if len(scores) != candidates:
        return failed_result(candidates, f"invalid_response: {len(scores)} scores for {candidates} candidates")
    kept = [None if score is None or not math.isfinite(score) else float(score) for score in scores]
    reasons = dict(errors or {})
    for index, score in enumerate(kept):
        if score is None:
            reasons.setdefault(index, "no score" if scores[index] is None else f"score {scores[index]} is not finite")
    valid = candidates - kept.count(None)
    if valid < min(spec.min_valid, candidates):
        first = next(iter(reasons.values()), "no reason given")
        why = f"too_few_scores: {valid} of {candidates} candidates scored, min_valid is {spec.min_valid} ({first})"
        return replace(failed_result(candidates, why), errors=reasons)
    return RewardResult(scores=tuple(kept), errors=reasons)


@dataclass
class _OpenQuestion:
    """What one reward is asked of a group. `flaws` says of the rows that it is not asked for why."""

    asked_at: float
    flaws: Mapping[int, str]
    answers_before: int  # of this reward, to whichever group


@dataclass
class _OpenGroup:
    """A group with answers missing. `questions` are those that are asked and not answered."""

    group: CandidateGroup
    questions: dict[str, _OpenQuestion] = field(default_factory=dict)
    results: dict[str, RewardResult] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """One reward is to be asked to rank `group`, whose candidates are those that it is asked for."""

    reward: str
    group: CandidateGroup
    asked_at: float


class GroupsInFlight:
    """The books. `now` is any monotonic clock in seconds, the same for all calls."""

    def __init__(self, specs: Sequence[RewardSpec], on_ranked: OnRanked | None = None) -> None:
        self.specs = {spec.name: spec for spec in specs}
        self._on_ranked = on_ranked
        self._open_groups: dict[str, _OpenGroup] = {}
        self._late_groups: dict[str, _OpenGroup] = {}  # finished, with questions to silent rewards still open
        self._finished: deque[RankedGroup] = deque()
        self._new_questions: deque[Question] = deque()
        self._answers: Counter[str] = Counter()  # by reward
        self._silent: dict[str, str] = {}  # reward: what was last heard
        self._untold: dict[str, str | None] = {}  # reward: why it has become silent, or None: it is back

    def add_group(self, group: CandidateGroup, now: float) -> None:
        """Take a group. `pop_questions` tells whom to ask."""
        if group.id in self._open_groups or group.id in self._late_groups:
            raise ValueError(f"group {group.id} is in flight already")
        self._open_groups[group.id] = entry = _OpenGroup(group)
        for name in self._names_asked(group):
            if len(group.flaws) == len(group.images):
                self._settle(group.id, name, failed_result(0, next(iter(group.flaws.values()))), group.flaws)
            elif self.specs[name].shows is None:
                self._ask(entry, name, group.flaws, now)
        self._finish_group(group.id, now)

    def pop_questions(self) -> list[Question]:
        """What is to be asked, since this was last called."""
        asked = list(self._new_questions)
        self._new_questions.clear()
        return [each for each in asked if self.is_waiting(each.group.id, each.reward)]

    def is_waiting(self, group_id: str, reward: str) -> bool:
        """Whether an answer of this reward for the group is still of use."""
        entry = self._entry(group_id)
        return entry is not None and reward in entry.questions

    def put_result(
        self, group_id: str, reward: str, result: RewardResult, now: float, *, is_remembered: bool = False
    ) -> bool:
        """Take an answer to a question; False when it is a duplicate or nobody waits for it. One that is remembered
        from before says nothing of whether its reward answers now.

        Raises RewardUnavailable when a required reward failed and not by this group's scores alone.
        """
        entry = self._entry(group_id)
        if entry is None or reward not in entry.questions:
            return False
        if not is_remembered:
            self._hear(reward)
        self._settle(group_id, reward, result, entry.questions[reward].flaws)
        self._finish_group(group_id, now)
        return True

    def _hear(self, reward: str) -> None:
        self._answers[reward] += 1
        if self._silent.pop(reward, None) is not None and self._untold.pop(reward, None) is None:
            self._untold[reward] = None

    def expire_overdue(
        self,
        now: float,
        reasons: Mapping[tuple[str, str], str] | None = None,
        pending: Collection[tuple[str, str]] = (),
    ) -> None:
        """Fail what is past its deadline. `reasons` may tell the last thing heard, and `pending` which rankings their
        endpoints are at work on, both by (group id, reward).
        """
        overdue = [(group_id, reward) for group_id, reward, deadline in self.deadlines() if deadline <= now]
        for at in overdue:
            if not self.is_waiting(*at):
                continue
            group_id, reward = at
            spec, entry = self.specs[reward], self._entry(group_id)
            assert entry is not None
            question = entry.questions[reward]
            last = (reasons or {}).get(at)
            code = "late" if at in pending else "timeout"
            why = f"{code}: no ranking within {spec.timeout_s:g} s" + (f" ({last})" if last else "")
            if not spec.required and self._answers[reward] == question.answers_before:
                if reward not in self._silent:
                    self._silent[reward] = self._untold[reward] = why
                why = f"{SILENT}: {why}"
            asked = len(entry.group.images) - len(question.flaws)
            late = group_id in self._late_groups
            result = failed_result(asked, why, seconds=now - question.asked_at)
            self._settle(group_id, reward, result, question.flaws)
            if not late:
                self._finish_group(group_id, now)
        if overdue:
            for group_id in list(self._open_groups):
                self._finish_group(group_id, now)

    def deadlines(self) -> Iterator[tuple[str, str, float]]:
        """(group id, reward, when) of every question without an answer."""
        for groups in (self._open_groups, self._late_groups):
            for group_id, entry in groups.items():
                for name, question in entry.questions.items():
                    yield group_id, name, question.asked_at + self.specs[name].timeout_s

    def list_unanswered(self, now: float) -> dict[str, dict[str, float]]:
        """By reward, the groups that wait for its answer, each with the seconds since it was asked."""
        found: dict[str, dict[str, float]] = {}
        for group_id, entry in self._open_groups.items():
            for name, question in entry.questions.items():
                found.setdefault(name, {})[group_id] = now - question.asked_at
        return found

    def pop_finished(self) -> RankedGroup | None:
        """The group that finished first and was not taken yet."""
        return self._finished.popleft() if self._finished else None

    def change_rewards(self, rewards: Sequence[RewardSpec]) -> None:
        """The same rewards with other weights: what is asked already is judged by these too."""
        self.specs.update({spec.name: spec for spec in rewards})

    def clear(self) -> None:
        """Forget every group, and not who is silent."""
        for each in (self._open_groups, self._late_groups, self._finished, self._new_questions):
            each.clear()

    def __len__(self) -> int:
        """Groups not yet taken, finished or not."""
        return len(self._open_groups) + len(self._finished)

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _names_asked(self, group: CandidateGroup) -> list[str]:
        return [name for name in self.specs if group.asked is None or name in group.asked]

    def _entry(self, group_id: str) -> _OpenGroup | None:
        return self._open_groups.get(group_id) or self._late_groups.get(group_id)

    def _ask(self, entry: _OpenGroup, reward: str, flaws: Mapping[int, str], now: float) -> None:
        """Ask a reward for the rows without a flaw; a silent one for a few groups at a time."""
        if self._is_passed_by(reward):
            held = [each for groups in (self._open_groups, self._late_groups) for each in groups.values()]
            if sum(reward in each.questions for each in held) >= MAX_LATE_GROUPS:
                asked = len(entry.group.images) - len(flaws)
                self._settle(entry.group.id, reward, failed_result(asked, self._describe_silence(reward)), flaws)
                return
        entry.questions[reward] = _OpenQuestion(now, flaws, self._answers[reward])
        self._new_questions.append(Question(reward, replace(entry.group, flaws=flaws).without_flaws(), now))

    def _ask_followers(self, entry: _OpenGroup, now: float) -> None:
        """Ask the rewards that are shown what another has chosen, once it has."""
        for name in self._names_asked(entry.group):
            spec = self.specs[name]
            if spec.shows is None or name in entry.questions or name in entry.results:
                continue
            chosen = entry.results.get(spec.shows.by)
            count, flaws = len(entry.group.images), entry.group.flaws
            if chosen is None and not self._is_passed_by(spec.shows.by):
                continue
            if chosen is None or chosen.failure is not None:
                why = f"not_asked: reward {spec.shows.by}, which chooses what it is shown, gave no ranking"
                self._settle(entry.group.id, name, failed_result(count - len(flaws), why), flaws)
                continue
            shown = select_shown(chosen.scores, spec.shows.best, spec.shows.worst)
            hidden = dict.fromkeys(range(count), f"not_shown: not among those that {spec.shows.by} chose")
            self._ask(entry, name, {row: why for row, why in {**hidden, **flaws}.items() if row not in shown}, now)

    def _settle(self, group_id: str, reward: str, result: RewardResult, flaws: Mapping[int, str]) -> None:
        """Write an answer down. Raises RewardUnavailable."""
        code = (result.failure or "").partition(":")[0]
        entry = self._entry(group_id)
        assert entry is not None
        if result.failure is not None and self.specs[reward].required and code not in GROUP_FAILURES:
            raise RewardUnavailable(f"reward {reward}: {result.failure}", reward=reward, code=code)
        entry.questions.pop(reward, None)
        result = result.with_flaws(flaws)
        if result.failure is None and self._on_ranked is not None:
            self._on_ranked(entry.group, reward, result)
        if group_id in self._open_groups:
            entry.results[reward] = result
        elif not entry.questions:
            del self._late_groups[group_id]

    def _finish_group(self, group_id: str, now: float) -> None:
        """Finish a group that waits for nobody any more."""
        entry = self._open_groups.get(group_id)
        if entry is None:
            return
        self._ask_followers(entry, now)
        names = self._names_asked(entry.group)
        missing = [name for name in names if name not in entry.results]
        if not all(self._is_passed_by(name) for name in missing):
            return
        del self._open_groups[group_id]
        results = dict(entry.results)
        for name in missing:
            results[name] = failed_result(len(entry.group.images), self._describe_silence(name))
        if missing:
            self._late_groups[group_id] = entry
        ordered = {name: results[name] for name in names}
        silent = {name: why for name, why in self._untold.items() if why is not None}
        back = tuple(name for name, why in self._untold.items() if why is None)
        self._untold.clear()
        self._finished.append(RankedGroup(group_id, ordered, became_silent=silent, came_back=back))

    def _is_passed_by(self, reward: str) -> bool:
        """Whether groups finish without this reward's answer: it is silent, and something else is trained on."""
        if reward not in self._silent:
            return False
        return self.specs[reward].is_held_out or any(
            spec.is_trained and name not in self._silent for name, spec in self.specs.items()
        )

    def _describe_silence(self, reward: str) -> str:
        return f"{SILENT}: not waited for until it answers again (last: {self._silent[reward]})"
