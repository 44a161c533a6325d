import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchr3 import sharing
from searchr3.embedding import length_batches
from searchr3.sharing import dealt, document_lengths, encode_shared


@given(st.lists(st.lists(st.integers(), min_size=1, max_size=9), max_size=5), st.integers(1, 6))
def test_every_rank_gets_as_many_batches_of_the_same_size(batches, size):
    parts = dealt(batches, size)
    assert len(parts) == size
    for number, batch in enumerate(batches):
        shares = [part[number] for part in parts]
        assert {len(share) for share in shares} == {-(-len(batch) // size)}
        firsts = [row for place in range(len(shares[0])) for row in (share[place] for share in shares)]
        assert firsts[: len(batch)] == batch and set(firsts[len(batch) :]) <= {batch[-1]}


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("texts", [0, 1, 5, 24])
def test_shared_vectors_are_those_of_one_process(search, on_ranks, size, texts):
    """One model serves all ranks in turn here, so that only the dealing is tried."""
    contents = [f"def f{number}(): " + "parse the date " * (number % 7) for number in range(texts)]
    rendered = search.conversation.documents(contents)
    expected = search.encode_rendered(rendered)
    shares = []

    class Share:
        conversation, batch_size, device = search.conversation, 2, search.device

        def encode_rendered(self, rendered, batches):
            shares.append(tuple(map(len, batches)))
            vectors = np.full((len(rendered), search.dimension), np.nan, dtype=np.float32)
            for batch in batches:
                vectors[batch] = expected[batch]
            return vectors

    found = on_ranks(size, lambda group: encode_shared(Share(), rendered, group))
    assert all(vectors.tobytes() == expected.tobytes() for vectors in found)
    assert len(shares) == size and len(set(shares)) == 1  # as many forwards of the same sizes on each
    assert max(shares[0], default=0) <= 2


def test_batches_for_several_ranks_hold_as_many_tokens_each(search):
    rendered = search.conversation.documents(["parse " * (number % 40) for number in range(50)])
    for batch in length_batches(rendered, 8, tokens=120, ranks=3):
        width = -(-len(batch) // 3)
        assert width <= 8 and (width == 1 or width * max(len(rendered[row].ids) for row in batch) <= 120)


def test_rows_that_no_batch_names_are_left_out(search):
    rendered = search.conversation.documents(["parse a date", "sort a list", "merge"])
    vectors = search.encode_rendered(rendered, batches=[[2], [0]])
    np.testing.assert_allclose(vectors[[0, 2]], search.encode_rendered(rendered)[[0, 2]], atol=1e-5)
    assert not vectors[1].any()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_lengths_are_counted_in_parts_and_known_to_all(search, on_ranks, size, monkeypatch):
    """A part of the texts is held at a time. Ranks take turns here: a tokenizer is not made for threads."""
    monkeypatch.setattr(sharing, "_SOME", 3)
    texts = {f"d{number}": "parse the date " * (number % 5) for number in range(11)}
    held, lock = [], threading.Lock()

    class Alone:
        def documents(self, some):
            with lock:
                held.append(len(some))
                return search.conversation.documents(some)

    expected = [len(one.ids) for one in search.conversation.documents([*texts.values()])]
    found = on_ranks(size, lambda group: document_lengths(Alone(), [*texts], texts, group))
    assert [lengths.tolist() for lengths in found] == [expected] * size
    assert max(held) <= 3 and sum(held) == len(texts)
