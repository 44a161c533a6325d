"""What is asked for each query that wants a trace, what that may cost, and what an answer is worth.

A request is known by a digest of its whole body, and an answer is kept with the digest of what was asked.
So an answer counts for just the question that it was given to: other data, another prompt, model or
temperature ask anew, and nothing is asked twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import yaml

from searchr3.dataset.splits import digest
from searchr3.dataset.trace_text import TracePrompt, clean_trace, quotes
from searchr3.dataset.traces import queries_without_trace
from searchr3.dataset.types import RetrievalDataset
from searchr3.endpoint import NoAnswer
from searchr3.errors import EndpointError

BYTES_PER_TOKEN = 3  # of UTF-8: fewer than English or Chinese have, so that the estimate is rather too high
FRAME_TOKENS = 16  # of the chat format around a request

_OURS = ("model", "messages", "stream", "n")


@dataclass(frozen=True)
class AskSettings:
    """What the model is asked for.

    Attributes:
        model: the server's name for it.
        prompt: the wording.
        words: most words of a trace.
        max_tokens: most tokens of an answer.
        temperature: of sampling.
        body: further keys of the request, or others for `max_tokens` and `temperature`; None leaves one out.
    """

    model: str
    prompt: TracePrompt = field(default_factory=TracePrompt)
    words: int = 64
    max_tokens: int = 128
    temperature: float = 0.7
    body: Mapping[str, Any] = field(default_factory=dict)

    def keys(self) -> dict[str, Any]:
        """All of the request but its message."""
        keys = {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            **self.body,
        }
        return {key: value for key, value in keys.items() if value is not None}

    @property
    def most_tokens(self) -> int:
        """The limit on an answer's tokens; 0 when the request sets none."""
        limits = [self.keys().get(name) for name in ("max_tokens", "max_completion_tokens")]
        return max((limit for limit in limits if isinstance(limit, int)), default=0)


def read_body(settings: Sequence[str]) -> dict[str, Any]:
    """Further keys of a request from `KEY=VALUE` texts; values are YAML, `null` leaves a key out.

    >>> read_body(["reasoning_effort=low", "max_tokens=null"])
    {'reasoning_effort': 'low', 'max_tokens': None}

    Raises:
        EndpointError: a text has another form, or sets what has an option of its own.
    """
    body: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not (key and equals):
            raise EndpointError(f"--set {setting!r}: write KEY=VALUE, for example reasoning_effort=low")
        if key in _OURS:
            raise EndpointError(f"--set {key}: searchr3 sets this key itself; leave it out")
        try:
            body[key] = json.loads(json.dumps(yaml.safe_load(text), allow_nan=False))
        except (yaml.YAMLError, TypeError, ValueError):
            raise EndpointError(f"--set {setting!r}: the value is not YAML that JSON can hold") from None
    return body


@dataclass(frozen=True)
class Prices:
    """Of a million tokens, in any currency."""

    prompt: float
    answer: float

    def cost(self, prompt_tokens: int, answer_tokens: int) -> float:
        return (prompt_tokens * self.prompt + answer_tokens * self.answer) / 1e6


def money(amount: float) -> str:
    """
    >>> money(1234.5), money(0.012345)
    ('1,234.50', '0.0123')
    """
    return f"{amount:,.2f}" if amount >= 1 else f"{amount:.3g}"


@dataclass(frozen=True)
class Estimate:
    """What is about to be asked.

    Attributes:
        requests: to be sent, repetitions apart.
        answered: requests of this plan that have their trace already.
        others: answers in the log that were given to other requests, or gave no trace.
        prompt_tokens: about, rather too many: (UTF-8 bytes / 3, rounded up, + 16) a request.
        answer_tokens: at most; None when the request sets no limit.
    """

    requests: int
    answered: int
    others: int
    prompt_tokens: int
    answer_tokens: int | None

    def lines(self, prices: Prices | None = None) -> list[str]:
        """For a person."""
        kept = f"; {self.answered:,} answered already" if self.answered else ""
        kept += f"; {self.others:,} answers in the log are of no use here" if self.others else ""
        most = "without limit" if self.answer_tokens is None else f"at most {self.answer_tokens:,}"
        shown = [
            f"requests:       {self.requests:,}{kept}",
            f"prompt tokens:  about {self.prompt_tokens:,} (rather fewer; bytes / 3)",
            f"answer tokens:  {most}",
        ]
        if prices and self.answer_tokens is None:
            shown.append(
                f"cost:           {money(prices.cost(self.prompt_tokens, 0))} and that of the answers"
            )
        elif prices:
            prompts, answers = prices.cost(self.prompt_tokens, 0), prices.cost(0, self.answer_tokens or 0)
            shown.append(
                f"cost:           at most about {money(prompts + answers)} "
                f"(prompts {money(prompts)}, answers {money(answers)})"
            )
        return shown


class TracePlan:
    """Which queries want a trace, what is asked for each, and what an answer is worth.

    Args:
        dataset: queries with a trace keep it, and are not asked for.
        splits: whose queries; dev and test are refused.
        settings: what to ask for.
        limit: at most so many queries, the first ones; None for all.
    """

    def __init__(
        self,
        dataset: RetrievalDataset,
        splits: Sequence[str],
        settings: AskSettings,
        limit: int | None = None,
    ):
        self.dataset, self.settings = dataset, settings
        self.relevant = dict(islice(queries_without_trace(dataset, splits).items(), limit))

    def message(self, key: str) -> str:
        document = self.dataset.corpus[self.relevant[key][0]].content
        return self.settings.prompt.render(self.dataset.queries[key].text, document, self.settings.words)

    def request(self, key: str) -> str:
        """The body of the request, as JSON text."""
        messages = [{"role": "user", "content": self.message(key)}]
        return json.dumps({**self.settings.keys(), "messages": messages}, sort_keys=True)

    def trace(self, key: str, answer: str, finish: str) -> str:
        """The trace in an answer.

        Raises:
            NoAnswer: there is none.
        """
        if finish in ("content_filter", "refusal"):
            raise NoAnswer("the server's filter held it back" if finish == "content_filter" else "refused")
        cut_off = finish == "length"
        trace = clean_trace(answer, self.settings.words, cut_off)
        if not trace:
            raise NoAnswer(
                "cut off before it said anything; raise --max-tokens, or turn the model's own thinking off"
                if cut_off
                else "empty answer"
            )
        documents = (self.dataset.corpus[one].content for one in self.relevant[key])
        if quotes(trace, documents, self.dataset.queries[key].text):
            raise NoAnswer("quotes the document")
        return trace

    def known(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
        """Traces from the answers that were given to just these requests; the last of a query counts."""
        asked: dict[str, str] = {}
        traces: dict[str, str] = {}
        for row in rows:
            key, answer = row["query"], row.get("answer")
            if key not in self.relevant or not isinstance(answer, str):
                continue
            if row["asked"] == asked.setdefault(key, digest(self.request(key))):
                try:
                    traces[key] = self.trace(key, answer, str(row.get("finish")))
                except NoAnswer:
                    continue
        return traces

    def estimate(self, traces: Mapping[str, str], rows: int = 0) -> Estimate:
        """What asking for the others comes to; `rows` is how many answers there are."""
        missing = self.missing(traces)
        sizes = (len(self.message(key).encode("utf-8", "surrogatepass")) for key in missing)
        return Estimate(
            requests=len(missing),
            answered=len(traces),
            others=max(0, rows - len(traces)),
            prompt_tokens=sum(-(-size // BYTES_PER_TOKEN) + FRAME_TOKENS for size in sizes),
            answer_tokens=len(missing) * self.settings.most_tokens if self.settings.most_tokens else None,
        )

    def missing(self, traces: Mapping[str, str]) -> list[str]:
        return [key for key in self.relevant if key not in traces]
