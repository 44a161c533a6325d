"""Reasoning traces that a large model writes, asked for over the network and kept as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from searchr3.dataset.answer_log import AnswerLog, read_answers
from searchr3.dataset.disk import writable
from searchr3.dataset.endpoint import ChatEndpoint, Reply
from searchr3.dataset.splits import digest
from searchr3.dataset.trace_plan import Estimate, Prices, TracePlan, money
from searchr3.dataset.types import RetrievalDataset
from searchr3.endpoint import NoAnswer
from searchr3.errors import EndpointError
from searchr3.files import check_writable, refuse_occupied

Tell = Callable[[str, int, int], None]
"""What is counted, how many are done, how many there are."""

IN_A_ROW = 16  # so many requests without one trace: something is wrong with all of them


@dataclass
class Outcome:
    """What came of it: the traces, what failed and why, and what this run was charged for."""

    dataset: RetrievalDataset
    wanted: int
    traces: dict[str, str]
    failed: dict[str, str] = field(default_factory=dict)
    asked: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0

    def filled(self) -> RetrievalDataset:
        """The data set with the traces."""
        queries = writable(self.dataset.queries)
        for key, trace in self.traces.items():
            queries[key] = replace(queries[key], reasoning=trace)
        return replace(self.dataset, queries=queries)


def log_path(output: Path) -> Path:
    """Where the answers for a data set are kept: beside it.

    >>> log_path(Path("data/traced")).name
    'traced.answers.jsonl'
    """
    output = output.absolute()
    return output.with_name(f"{output.name}.answers.jsonl")


def estimate_for(plan: TracePlan, output: Path) -> Estimate:
    """What asking for the traces of `output` comes to, beside the answers that are kept. Writes nothing."""
    rows = read_answers(log_path(output))
    return plan.estimate(plan.known(rows), sum("answer" in row for row in rows))


def ask_for_traces(
    plan: TracePlan,
    endpoint: ChatEndpoint,
    output: Path,
    max_failed: float = 0.1,
    tell: Tell = lambda *_: None,
) -> Outcome:
    """Ask for the traces that are missing, and write the data set with all of them to `output`.

    Answers are kept in `log_path(output)` as they come. When the work was interrupted in any way, the same
    call asks only for what is missing; queries that failed are asked again.

    Args:
        plan: what is wanted.
        endpoint: whom to ask; as many requests at a time as its `concurrency`.
        output: a folder that is not there yet.
        max_failed: the most of the plan's queries, as a share, that may go without a trace; with more of them
            `output` is not written.
        tell: hears of progress.

    Raises:
        EndpointError: nothing can be asked, too many failed, or 16 failed in a row.
        SearchR3Error: `output` or the log cannot be written, or another process writes the log.
    """
    refuse_occupied(output)
    check_writable(output)
    log = log_path(output)
    with AnswerLog(log) as writer:
        outcome = Outcome(plan.dataset, len(plan.relevant), plan.known(read_answers(log)))
        endpoint.answered = bool(outcome.traces)
        try:
            asyncio.run(_Asking(plan, endpoint, writer, outcome, max_failed, tell).run())
        except EndpointError as error:
            kept = len(outcome.traces)
            more = f"; {kept:,} traces are kept: the same command goes on" if kept else ""
            raise EndpointError(f"{error}{more}") from None
    outcome.filled().save(output)
    return outcome


class _Asking:
    """Asks for what an outcome lacks, several at a time."""

    def __init__(
        self,
        plan: TracePlan,
        endpoint: ChatEndpoint,
        log: AnswerLog,
        outcome: Outcome,
        max_failed: float,
        tell: Tell,
    ):
        self.plan, self.endpoint, self.log, self.outcome = plan, endpoint, log, outcome
        self.max_failed, self.tell = max_failed, tell
        self.missing = plan.missing(outcome.traces)
        self.in_a_row = 0

    async def run(self) -> None:
        waiting = iter(self.missing)
        if not self.missing:
            return
        async with self.endpoint:
            await self._ask(next(waiting))  # alone: a wrong key or name is told once
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(self.endpoint.concurrency):
                        group.create_task(self._work(waiting))
            except BaseExceptionGroup as errors:  # the first one stopped the others
                raise errors.exceptions[0] from None
        self._stop_if_too_many()

    async def _work(self, waiting: Iterator[str]) -> None:
        for key in waiting:
            await self._ask(key)

    async def _ask(self, key: str) -> None:
        body = self.plan.request(key)
        row = {"query": key, "asked": digest(body)}
        self.outcome.asked += 1
        try:
            reply = await self.endpoint.ask(body)
            self._note(row, reply)
            self.outcome.traces[key] = self.plan.trace(key, reply.text, reply.finish)
            self.in_a_row = 0
        except NoAnswer as why:
            self.log.append({**row, "failed": str(why)})
            self.outcome.failed[key] = str(why)
            self.in_a_row += 1
            self._stop_if_hopeless()
        self.tell("asking", len(self.outcome.traces) + len(self.outcome.failed), self.outcome.wanted)

    def _note(self, row: dict[str, Any], reply: Reply) -> None:
        tokens = [reply.prompt_tokens, reply.answer_tokens]
        self.log.append({**row, "answer": reply.text, "finish": reply.finish, "tokens": tokens})
        self.outcome.prompt_tokens += reply.prompt_tokens
        self.outcome.answer_tokens += reply.answer_tokens

    def _stop_if_hopeless(self) -> None:
        """Before more is spent, once it is clear that nothing will be written."""
        if len(self.outcome.failed) >= IN_A_ROW:
            self._stop_if_too_many()
        if self.in_a_row >= max(IN_A_ROW, 2 * self.endpoint.concurrency):
            raise EndpointError(f"{self.in_a_row} queries in a row got no trace {self._last()}")

    def _stop_if_too_many(self) -> None:
        failed, wanted = len(self.outcome.failed), self.outcome.wanted
        if failed > self.max_failed * wanted:
            raise EndpointError(
                f"{failed:,} of {wanted:,} queries got no trace {self._last()}, more than --max-failed "
                f"{self.max_failed:g} allows; {self.log.path} has the reasons"
            )

    def _last(self) -> str:
        key, why = list(self.outcome.failed.items())[-1]
        return f"(the last one, {key!r}: {why})"


def closing_lines(outcome: Outcome, output: Path, prices: Prices | None = None) -> tuple[str, list[str]]:
    """For a person: the result in one line, and what else is worth knowing."""
    queries = outcome.dataset.queries
    made = sum(key in outcome.traces or one.reasoning is not None for key, one in queries.items())
    more = []
    if outcome.asked:
        cost = ""
        if prices:
            cost = f", cost {money(prices.cost(outcome.prompt_tokens, outcome.answer_tokens))}"
        more.append(
            f"asked {outcome.asked:,}: {outcome.prompt_tokens:,} prompt and {outcome.answer_tokens:,} answer "
            f"tokens, as the server counted{cost}"
        )
    if outcome.failed:
        more.append(f"without a trace: {len(outcome.failed):,}; the reasons are in {log_path(output)}")
        more += [f"- {key}: {why}" for key, why in islice(outcome.failed.items(), 10)]
    return f"{output}: {made} of {len(queries)} queries have a trace", more
