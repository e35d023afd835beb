"""The search for variants, with problems whose times and errors are made up; no clock decides here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from gncompile.errors import CompileError
from gncompile.tuning.problem import Candidate, Key
from gncompile.tuning.search import (
    CANDIDATES,
    FEWEST_ROUNDS,
    ROUNDS,
    TOGETHER,
    line,
    ranked,
    search,
)


class Clock:
    """A time that passes only when something is measured."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Made:
    """A problem with given times by option ``v``; option 0 is the default."""

    clock: Clock
    times: dict[int, float]
    predicted: dict[int, float] = field(default_factory=dict)
    wrong: tuple[int, ...] = ()
    name: str = "made"
    uses: int = 1
    noise: Callable[[int], float] = lambda count: 1.0
    interrupt_at: int = -1
    checking: float = 0.0
    prepared: list[int] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    released: int = 0

    @property
    def key(self) -> Key:
        return Key(self.name, "abc", (3,), "float32", "highest")

    @property
    def candidates(self) -> Sequence[Candidate]:
        return [
            Candidate({"v": v} if v else {}, self.predicted.get(v, time))
            for v, time in self.times.items()
        ]

    def prepare(self, candidates: Sequence[Candidate]) -> None:
        self.prepared.append(len(candidates))

    def check(self, candidate: Candidate) -> str | None:
        v = _number(candidate)
        self.log.append(f"check {v}")
        self.clock.now += self.checking
        return "wrong by 1" if v in self.wrong else None

    def measure(self, candidate: Candidate) -> float:
        v = _number(candidate)
        count = sum(entry.startswith("measure") for entry in self.log)
        if count == self.interrupt_at:
            raise KeyboardInterrupt
        self.log.append(f"measure {v}")
        seconds = self.times[v] * self.noise(count)
        self.clock.now += seconds
        return seconds

    def release(self) -> None:
        self.released += 1


def _number(candidate: Candidate) -> int:
    return int(candidate.options.get("v") or 0)


def test_the_fastest_right_candidate_is_chosen() -> None:
    clock = Clock()
    problem = Made(clock, {0: 1.0, 1: 0.5, 2: 0.8})
    (outcome,) = search([problem], budget=100.0, clock=clock).outcomes
    assert outcome.options == {"v": 1}
    assert (outcome.default_seconds, outcome.seconds) == (1.0, 0.5)
    assert line(outcome) == "made 3 float32: v=1, 2.00 times as fast"
    assert problem.released == 1


def test_a_wrong_but_fast_candidate_is_never_timed() -> None:
    clock = Clock()
    problem = Made(clock, {0: 1.0, 1: 0.01, 2: 0.8}, wrong=(1,))
    (outcome,) = search([problem], budget=100.0, clock=clock).outcomes
    assert outcome.options == {"v": 2}
    assert "measure 1" not in problem.log
    rejected = [t for t in outcome.trials if t.options == {"v": 1}]
    assert [(t.rejected, t.seconds) for t in rejected] == [("wrong by 1", None)]


def test_every_candidate_is_checked_before_any_is_timed() -> None:
    clock = Clock()
    problem = Made(clock, {0: 1.0, 1: 0.5})
    search([problem], budget=100.0, clock=clock)
    assert problem.log[:4] == ["check 0", "check 1", "measure 0", "measure 1"]


def test_candidates_are_compiled_together_and_checked_for_half_the_time() -> None:
    """Checks of 1 s in a budget of 14 s: seven begin within half of it; the others are not reached."""
    clock = Clock()
    problem = Made(clock, {v: 0.1 - v / 1000 for v in range(20)}, checking=1.0)
    (outcome,) = search([problem], "full", budget=14.0, clock=clock).outcomes
    assert [entry for entry in problem.log if "check" in entry] == [f"check {v}" for v in order(7)]
    assert problem.prepared == [TOGETHER]
    assert outcome.options == {"v": 19}
    unreached = [t for t in outcome.trials if t.seconds is None and t.rejected is None]
    assert len(unreached) == 20 - 7


def order(count: int) -> list[int]:
    """The default, then the candidates of :class:`Made` that are predicted to be fastest."""
    return [0, *range(19, 20 - count, -1)]


def test_nothing_is_chosen_where_the_default_itself_is_wrong() -> None:
    clock = Clock()
    found = search([Made(clock, {0: 1.0, 1: 0.5}, wrong=(0,))], budget=100.0, clock=clock)
    assert not found.outcomes
    assert len(found.unreached) == 1


def test_a_small_gain_is_noise() -> None:
    clock = Clock()
    (outcome,) = search([Made(clock, {0: 1.0, 1: 0.98})], budget=100.0, clock=clock).outcomes
    assert outcome.options == {}
    assert line(outcome).endswith("default kept")


def test_one_slow_moment_does_not_decide() -> None:
    """Every candidate has a slow measurement; the shortest times are compared."""
    clock = Clock()
    slow = {1: 50.0, 2: 30.0}
    problem = Made(clock, {0: 1.0, 1: 0.5}, noise=lambda count: slow.get(count, 1.0))
    (outcome,) = search([problem], budget=1000.0, clock=clock).outcomes
    assert outcome.options == {"v": 1}
    assert outcome.seconds == 0.5


def test_quick_times_the_candidates_predicted_best_and_full_times_all() -> None:
    times = {0: 1.0, 1: 0.9, 2: 0.8, 3: 0.7, 4: 0.1}
    predicted = {0: 1.0, 1: 0.5, 2: 0.6, 3: 0.4, 4: 2.0}
    quick, full = (Made(Clock(), times, predicted) for _ in range(2))
    chosen = [
        search([problem], effort, 1000.0, clock=problem.clock).outcomes[0].options["v"]
        for problem, effort in ((quick, "quick"), (full, "full"))
    ]
    assert CANDIDATES["quick"] == 3
    assert chosen == [3, 4]
    assert "measure 4" not in quick.log
    assert quick.log.count("measure 0") == ROUNDS["quick"]
    assert full.log.count("measure 4") == ROUNDS["full"]


def test_candidates_of_equal_prediction_keep_their_order() -> None:
    made = Made(Clock(), dict.fromkeys(range(5), 1.0))
    assert [_number(c) for c in ranked(made.candidates, 3)] == [0, 1, 2, 3]


def test_the_most_expensive_problems_come_first() -> None:
    clock = Clock()
    order: list[str] = []
    small = Made(clock, {0: 1.0}, name="small")
    often = Made(clock, {0: 2.0}, name="often", uses=10)
    large = Made(clock, {0: 5.0}, name="large")
    problems = [small, often, large]
    search(problems, budget=1e6, report=lambda o: order.append(o.key.kernel), clock=clock)
    assert order == ["often", "large", "small"]


def test_a_spent_budget_leaves_the_rest_at_their_defaults() -> None:
    clock = Clock()
    large = Made(clock, {0: 5.0, 1: 4.0}, name="large")
    small = Made(clock, {0: 1.0, 1: 0.5}, name="small")
    budget = 9.0 * FEWEST_ROUNDS
    found = search([small, large], "full", budget, clock=clock)
    assert [o.key.kernel for o in found.outcomes] == ["large"]
    assert [key.kernel for key in found.unreached] == ["small"]
    # Rounds are finished, so the budget is passed by less than one round.
    assert clock.now - 100.0 <= budget + 9.0
    assert not found.interrupted


def test_too_few_rounds_make_no_choice() -> None:
    clock = Clock()
    found = search([Made(clock, {0: 5.0, 1: 1.0})], budget=6.0, clock=clock)
    assert not found.outcomes
    assert len(found.unreached) == 1


def test_an_interrupted_search_keeps_what_was_found() -> None:
    clock = Clock()
    first = Made(clock, {0: 2.0, 1: 1.0}, name="first")
    second = Made(clock, {0: 1.0, 1: 0.5}, name="second", interrupt_at=3)
    third = Made(clock, {0: 0.5, 1: 0.1}, name="third")
    found = search([first, second, third], budget=1e4, clock=clock)
    assert found.interrupted
    assert [(o.key.kernel, o.options) for o in found.outcomes] == [("first", {"v": 1})]
    assert [key.kernel for key in found.unreached] == ["second", "third"]
    assert second.released == 1
    assert third.log == []


def test_an_interrupt_while_a_choice_is_kept_ends_the_search() -> None:
    clock = Clock()

    def report(outcome: object) -> None:
        raise KeyboardInterrupt

    problems = [Made(clock, {0: 2.0, 1: 1.0}), Made(clock, {0: 1.0}, name="second")]
    found = search(problems, budget=1e4, report=report, clock=clock)
    assert found.interrupted
    assert (len(found.outcomes), len(found.unreached)) == (1, 1)


def test_equal_measurements_give_equal_choices() -> None:
    def run() -> list[object]:
        clock = Clock()
        wobble = Made(clock, {0: 1.0, 1: 0.9, 2: 0.9}, noise=lambda n: 1 + (n * 7 % 5) / 10)
        found = search([wobble, Made(clock, {0: 3.0, 1: 2.0}, name="b")], budget=1e3, clock=clock)
        return list(found.outcomes)

    assert run() == run()


@pytest.mark.parametrize(
    ("effort", "budget", "text"),
    [
        ("quik", 1.0, "unknown effort 'quik'. Did you mean 'quick'?"),
        ("quick", 0.0, "a budget of 0 s"),
        ("quick", float("nan"), "a budget of nan s"),
    ],
)
def test_unknown_efforts_and_empty_budgets_are_refused(effort: str, budget: float, text: str):
    with pytest.raises(CompileError, match=text.replace("?", r"\?")):
        search([], effort, budget)
