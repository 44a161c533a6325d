"""Both scorers against plain rankings of the whole corpus."""

import numpy as np
import pytest

from searchr3.errors import ModelError, SearchR3Error
from searchr3.mining.scorers import BM25Scorer, Teacher, make_scorer
from searchr3.model import SearchR3


def quiet(what, done, total):
    pass


@pytest.fixture
def texts(toy):
    return [document.content for document in toy.corpus.values()]


@pytest.fixture
def asked(toy):
    return [query.text for query in toy.queries.values()][:20]


def check(scorer, asked, table, matching=None):
    """`search` gives what sorting `table` (n, m) gives, ties by row, and the scores of other rows."""
    wanted = [np.array([3, 140]), *([np.array([7])] * (len(asked) - 1))]
    found = list(scorer.search(asked, wanted, 12))
    assert len(found) == len(asked)
    for hits, scores, rows in zip(found, table, wanted, strict=True):
        best = np.argsort(-scores, kind="stable")[:12]
        if matching:
            best = best[scores[best] > 0]
        np.testing.assert_array_equal(hits.rows, best)
        np.testing.assert_allclose(hits.scores, scores[best], rtol=1e-6)
        np.testing.assert_allclose(hits.positives, scores[rows], rtol=1e-6)


def test_bm25_ranks_what_shares_a_word_and_scores_any(texts, asked):
    asked = [*asked, "nothing of it", "parse lazily sort"]
    scorer = BM25Scorer(texts)
    scores, rows = scorer.index.search(asked, len(texts))
    table = np.zeros((len(asked), len(texts)), dtype=np.float32)
    for line, some, places in zip(table, scores, rows, strict=True):
        line[places[places >= 0]] = some[places >= 0]
    check(scorer, asked, table, matching=True)
    assert [len(hits.rows) for hits in scorer.search(["nothing of it"], [np.array([0])], 5)] == [0]


def test_bm25_of_documents_without_a_word():
    (hits,) = BM25Scorer(["…", "!"]).search(["word"], [np.array([1])], 5)
    assert len(hits.rows) == 0 and hits.positives.tolist() == [0]


def test_a_model_ranks_by_cosine_and_an_instruction_is_heard(tiny_model, texts, asked, tmp_path):
    model = SearchR3(tiny_model)
    documents = model.encode_document(texts)
    for number, instruction in enumerate((None, "Find the function.")):
        teacher = Teacher(str(tiny_model), instruction)
        folder = tmp_path / str(number)
        folder.mkdir()
        scorer = make_scorer(teacher, teacher.load(), texts, folder, quiet)
        queries = model.encode_query(asked, instruction=instruction)
        table = (queries.astype(np.float64) @ documents.T.astype(np.float64)).astype(np.float32)
        check(scorer, asked, table)


def test_a_teacher_says_what_it_is_made_of(tiny_model, tmp_path):
    assert Teacher().files() == []
    names = {file.name for file in Teacher(str(tiny_model)).files()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "searchr3.json"} <= names
    prompts = tmp_path / "prompts.yaml"
    assert Teacher(str(tiny_model), prompts=prompts).files()[-1] == prompts
    with pytest.raises(ModelError, match="no such folder"):
        Teacher(str(tmp_path / "nothing")).files()
    for more in ({"instruction": "x"}, {"prompts": prompts}):
        with pytest.raises(SearchR3Error, match="bm25 takes no instruction and no prompts"):
            Teacher("bm25", **more)
