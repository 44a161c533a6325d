"""Is it the thinking? Runs that keep the weights and put something else in the thought's place.

A model that reasons better than it embeds directly may owe that to the text of its thoughts, or only to the
further prompt, to more positions to compute in, or to reading the query twice. Each control takes away the
text and keeps the rest:

    other_trace   the thought about another query, each thought used once
    filler        as many filler tokens as the own thought has tokens
    repeated      the whole query, as often as it takes to have at least as many tokens as the thought
    bm25+trace    BM25 over query and thought: are the thought's words enough, without the model?

`filler` has exactly the own thought's number of tokens for each query, so that it differs from `reasoned` in
what is said and in nothing else. `repeated` has as many or more: a part of the query would be a weaker
control than the whole. `other_trace` has the same thoughts over all queries. In all of them the embed token
is put there by force (`emitted` is False), and `seconds` leave the thinking out. `bm25+trace` is a search
that needs the thoughts: their seconds count.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from searchr3.errors import DataError, ModelError, SearchR3Error
from searchr3.evaluation.bench import Bench, Embedder, Words
from searchr3.evaluation.results import REASONING, Run, Thought
from searchr3.evaluation.thoughts import GivenThought, given
from searchr3.files import nearest

WITHOUT_MODEL = "bm25+trace"
CONTROLS = ("other_trace", "filler", "repeated", WITHOUT_MODEL)
FILLERS = (" .", ".", "…", " ,", ",")  # the first that the tokenizer writes as one token
SEED = 0


def check_controls(names: Sequence[str], reasoning: str) -> None:
    """Look at controls before anything is loaded or encoded.

    Raises:
        SearchR3Error: one is unknown, or there will be no run `reasoned` to compare with.
    """
    for name in names:
        if name not in CONTROLS:
            guess = nearest(name, CONTROLS)
            mend = f"did you mean {guess!r}?" if guess else f"choose among {', '.join(CONTROLS)}"
            raise SearchR3Error(f"no control {name!r}; {mend}")
    if names and "reasoned" not in REASONING[reasoning]:
        raise SearchR3Error(
            "controls replace the thoughts of the run 'reasoned', which will not be there; "
            "let reasoning be on, both or all"
        )


def run_controls(
    bench: Bench, model: Embedder, document_vectors: np.ndarray, reasoned: Run, names: Sequence[str]
) -> list[Run]:
    """The runs of these controls, each once, in their order.

    Raises:
        DataError: `other_trace` of a single query.
        ModelError: the tokenizer writes none of `FILLERS`.
    """
    own = [reasoned.thoughts[query] for query in bench.ids]
    runs = []
    for name in dict.fromkeys(names):
        if name == WITHOUT_MODEL:
            texts = [f"{query} {one.text}" for query, one in zip(bench.queries, own, strict=True)]
            run = bench.bm25(name, texts, thoughts=reasoned.thoughts, kind="control")
            runs.append(run.with_thinking_of(reasoned))
            continue
        start = bench.clock()
        thoughts, setting = _thoughts(name, bench, model.conversation, own)
        vectors = bench.embed_after(model, thoughts, f"control {name}")
        extras = {"thoughts": dict(zip(bench.ids, thoughts, strict=True)), "setting": setting}
        runs.append(bench.ranked(name, vectors, document_vectors, start, kind="control", **extras))
    return runs


def _thoughts(
    name: str, bench: Bench, words: Words, own: Sequence[Thought]
) -> tuple[list[GivenThought], str]:
    """What takes the place of the `own` thoughts, and how it was chosen, in words."""
    sizes = [len(one.token_ids) for one in own]
    if name == "other_trace":
        said = [tuple(one.token_ids) for one in own]
        donors = derangement(said, SEED)
        same = sum(said[donor] == mine for donor, mine in zip(donors, said, strict=True))
        setting = f"the thought about another query, drawn with seed {SEED}"
        note = f"; {same} of {len(own)} got one equal to their own" if same else ""
        return [GivenThought(own[donor].text, said[donor]) for donor in donors], setting + note
    if name == "filler":
        token = filler_token(words)
        setting = f"as many tokens {words.thought_text([token])!r} (id {token}) as the own thought has"
        return [given(words, [token] * size) for size in sizes], setting
    setting = "the whole query, as often as it takes to have as many tokens as the own thought"
    queries = zip(words.thought_ids(bench.queries), sizes, strict=True)
    return [given(words, echo(ids, size)) for ids, size in queries], setting


def echo(ids: Sequence[int], least: int) -> list[int]:
    """`ids` over and over, whole, and once at the least, until there are `least` or more.

    >>> echo([1, 2, 3], 2), echo([1, 2, 3], 4)
    ([1, 2, 3], [1, 2, 3, 1, 2, 3])
    """
    return [*ids] * max(1, -(-least // max(1, len(ids))))


def filler_token(words: Words) -> int:
    """The id of a token that says nothing: the first of `FILLERS` that is a single token.

    Raises:
        ModelError: none of them is.
    """
    for ids in words.thought_ids(FILLERS):
        if len(ids) == 1:
            return ids[0]
    raise ModelError(
        f"control filler: the tokenizer writes none of {', '.join(map(repr, FILLERS))} as one token; "
        "leave this control out"
    )


def derangement(items: Sequence[Hashable], seed: int) -> list[int]:
    """For each place another one, each used once; an equal item only where that cannot be avoided.

    Equal items are put side by side, in random order, and all move on by the size of the largest group: an
    item then meets an equal one only if that group is more than half of all, and as seldom as is possible.

    Raises:
        DataError: there is one item only.
    """
    if len(items) < 2:
        raise DataError("control other_trace: a single query has no other's thought; leave this control out")
    rng = np.random.default_rng(seed)
    groups: dict[Hashable, list[int]] = {}
    for place in rng.permutation(len(items)).tolist():
        groups.setdefault(items[place], []).append(place)
    order = [place for group in groups.values() for place in group]
    step = max(map(len, groups.values())) % len(items) or 1  # all equal: one further
    donors = [0] * len(items)
    for place, donor in zip(order, np.roll(order, -step).tolist(), strict=True):
        donors[place] = donor
    return donors
