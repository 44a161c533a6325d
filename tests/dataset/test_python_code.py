"""Installed Python code as a data set, and as texts to pretrain on."""

from collections import Counter
from pathlib import Path

import pytest

from searchr3.dataset.near_duplicates import near_duplicate_groups
from searchr3.dataset.python_code import first_sentence, python_dataset, read_python
from searchr3.dataset.splits import query_key, split_of
from searchr3.errors import DataError

NOUNS = ["apple", "river", "engine", "castle", "window", "ladder"]
NOUNS += ["forest", "mirror", "bottle", "candle", "hammer", "pencil"]
VERBS = ["count", "sort", "merge", "split", "load", "store", "parse", "print", "check", "remove"]


def function(name: str, docstring: str, words: str = "", seed: object = None) -> str:
    """Source of a function that is like no other."""
    seed = name if seed is None else seed
    body = "\n".join(f"    {seed}_{n} = compute_{seed}_{n}(value, {n}, {words!r})" for n in range(6))
    return f'def {name}(value):\n    """{docstring}"""\n{body}\n    return {seed}_5\n\n\n'


def package(number: int) -> str:
    return "".join(
        function(f"{verb}_{noun}_{number}", f"{verb.title()} the {noun} of shelf {number} here. More text.")
        for verb in VERBS
        for noun in NOUNS
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Twelve packages with 120 functions each, and one small one that copies others."""
    root = tmp_path_factory.mktemp("site")
    for number in range(12):
        folder = root / f"package{number}"
        folder.mkdir()
        (folder / "code.py").write_text(package(number))
    copies = root / "copies" / "_vendor"
    copies.mkdir(parents=True)
    # The same code, but another docstring and one name changed: its docstring must not become a query.
    changed = package(0).replace("of shelf 0 here", "as copied").replace("_5\n", "_4\n")
    (copies / "code.py").write_text(changed)
    return root


@pytest.fixture(scope="module")
def dataset(root):
    return python_dataset([root])


@pytest.fixture(scope="module")
def by_package(root):
    return python_dataset([root], split_by="package")


def test_query_and_document(dataset):
    queries = {query.text: key for key, query in dataset.queries.items()}
    key = queries["Sort the river of shelf 3 here"]
    (judged,) = [qrels[key] for qrels in dataset.qrels.values() if key in qrels]
    ((document, grade),) = judged.items()
    assert grade == 1
    assert dataset.corpus[document].text.startswith("def sort_river_3(value):\n    sort_river_3_0 = compute")
    assert "shelf" not in dataset.corpus[document].text
    metadata = dataset.corpus[document].metadata
    assert (metadata["package"], metadata["path"], metadata["name"]) == (
        "package3",
        "package3/code.py",
        "sort_river_3",
    )
    assert (root_line := int(metadata["line"])) > 1 and f":{root_line}:" in document


def test_is_whole(dataset):
    assert len(dataset.corpus) == len(dataset.queries) == 12 * 120
    assert dataset.validate() is dataset
    assert set(dataset.qrels) == {"stage1", "stage2", "dev", "test"}
    assert not dataset.held_out
    assert dataset.training_corpus() is dataset.corpus


def test_vendored_copies_are_left_out(dataset):
    assert "copies" not in {document.metadata["package"] for document in dataset.corpus.values()}
    assert not [query for query in dataset.queries.values() if "copied" in query.text]


def assert_disjoint(dataset):
    split_of_key: dict[str, str] = {}
    split_of_document: dict[str, str] = {}
    for split, qrels in dataset.qrels.items():
        for query, judged in qrels.items():
            assert split_of_key.setdefault(query_key(dataset.queries[query].text), split) == split
            for document in judged:
                assert split_of_document.setdefault(document, split) == split
    ids = list(dataset.corpus)
    assert set(ids) == set(split_of_document)
    groups = near_duplicate_groups([dataset.corpus[key].text for key in ids])
    assert max(Counter(groups.tolist()).values()) == 1


def test_splits_are_disjoint_by_query_and_near_duplicates(dataset, by_package):
    assert_disjoint(dataset)
    assert_disjoint(by_package)


def test_the_split_follows_from_the_words_of_the_query_alone(dataset, root):
    for split, qrels in dataset.qrels.items():
        assert {split_of(query_key(dataset.queries[query].text)) for query in qrels} == {split}
    alone = python_dataset([root / "package7"])  # other paths, fewer neighbours
    for split, qrels in alone.qrels.items():
        assert set(qrels) <= set(dataset.qrels[split])


def test_a_cap_keeps_a_stable_part_of_every_split(dataset, root):
    small, large = python_dataset([root], max_documents=200), python_dataset([root], max_documents=600)
    assert (len(small.corpus), len(large.corpus)) == (200, 600)
    assert set(small.corpus) < set(large.corpus) < set(dataset.corpus)
    assert len(large.qrels["test"]) == pytest.approx(0.14 * 600, abs=30)
    large.validate()


def test_whole_packages_are_held_out(by_package):
    by_package.validate()
    package_of = {key: document.metadata["package"] for key, document in by_package.corpus.items()}
    packages = {
        split: {package_of[document] for judged in qrels.values() for document in judged}
        for split, qrels in by_package.qrels.items()
    }
    training = packages["stage1"] | packages["stage2"]
    held_out = packages["test"] | packages.get("dev", set())
    assert packages["test"] and not training & held_out
    assert not packages["test"] & packages.get("dev", set())
    assert {package_of[key] for key in by_package.held_out} == held_out
    assert {package_of[key] for key in by_package.training_corpus()} == training
    assert by_package.held_out == {key for key in package_of if package_of[key] in held_out}


def test_a_query_shared_with_a_held_out_package_is_left_out(tmp_path, root, by_package):
    held_out = {by_package.corpus[key].metadata["package"] for key in by_package.held_out}
    inside, outside = (
        sorted(held_out)[0],
        next(f"package{n}" for n in range(12) if f"package{n}" not in held_out),
    )
    for number in range(12):
        folder = tmp_path / f"package{number}"
        folder.mkdir()
        extra = (
            function(f"shared_{number}", "A query that two packages share")
            if folder.name in (inside, outside)
            else ""
        )
        (folder / "code.py").write_text(package(number) + extra)
    assert "A query that two packages share" in {
        query.text for query in python_dataset([tmp_path]).queries.values()
    }
    both = python_dataset([tmp_path], split_by="package")
    assert {both.corpus[key].metadata["package"] for key in both.held_out} == held_out
    assert "A query that two packages share" not in {query.text for query in both.queries.values()}
    assert not [key for key in both.corpus if "shared_" in key]


def test_a_query_of_several_functions(tmp_path):
    source = "".join(function(f"few{n}", "Do the work of few functions") for n in range(3))
    source += "".join(function(f"many{n}", "do the WORK of many functions!") for n in range(4))
    (tmp_path / "code.py").write_text(source)
    dataset = python_dataset([tmp_path])
    ((query, judged),) = [pair for qrels in dataset.qrels.values() for pair in qrels.items()]
    assert dataset.queries[query].text == "Do the work of few functions"
    assert sorted(dataset.corpus[key].metadata["name"] for key in judged) == ["few0", "few1", "few2"]
    assert len(dataset.corpus) == 3


def test_stubs_and_trifles_are_no_documents(tmp_path):
    (tmp_path / "code.py").write_text(
        'def a():\n    """Return the number of things."""\n    return 1\n\n\n'
        'def b():\n    """Return the number of other things."""\n'
        '    raise NotImplementedError("one two three four five six seven")\n\n\n'
        "def c(value):\n    return [value.one, value.two, value.three, value.four, value.five, value.six]\n\n"
        + function("good", "Return the good things")
    )
    assert [document.metadata["name"] for document in python_dataset([tmp_path]).corpus.values()] == ["good"]


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return the name. And more.", "Return the name"),
        ("Return the\n    file name\n\nDetails here.", "Return the file name"),
        ("Use ``x`` for :func:`~os.open`, e.g. in `here`.", "Use x for os.open, e.g. in here"),
        ("Return a schema that matches bytes, e.g.:\n\n>>> f(b'')", "Return a schema that matches bytes"),
        ("Read version 1.2 of the file.", "Read version 1.2 of the file"),
        ("Return a list of\n:param x: the x", "Return a list of"),
        ("Return the value:\n>>> f(1)", "Return the value"),
        ("Too short", None),
        (":param x: something with many words", None),
        ("Parameters\n----------\nx : int", None),
        ("foo(a, b) -> the sum of both", None),
        ("input_ids (`torch.Tensor` of shape (a, b)): the ids of it", None),
        ("See the base class.", None),
        ("{'a': 1, 'b': 22, 'c': 333} == {}", None),
        ("Возвращает имя этого файла", None),
        ("word " * 41, None),
        ("", None),
    ],
)
def test_first_sentence(docstring, sentence):
    assert first_sentence(docstring) == sentence


def test_bad_input(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        python_dataset([tmp_path / "missing"])
    with pytest.raises(DataError, match="no documented Python functions"):
        python_dataset([tmp_path])
    with pytest.raises(DataError, match="'pakage': unknown; use 'hash' or 'package'"):
        python_dataset([tmp_path], split_by="pakage")
    with pytest.raises(DataError, match="unknown"):
        read_python([tmp_path], split_by="pakage")


@pytest.fixture(scope="module")
def texts(root):
    return read_python([root]).texts


def test_texts_hold_nothing_of_dev_and_test(texts, dataset):
    together = "\n".join(texts)
    for split in ("dev", "test"):
        for query, judged in dataset.qrels[split].items():
            assert dataset.queries[query].text not in together
            for document in judged:
                assert f"def {dataset.corpus[document].metadata['name']}(" not in together


def test_texts_hold_what_is_trained_on_but_never_docstring_and_code_together(texts, dataset):
    for query, judged in dataset.qrels["stage1"].items():
        (document,) = [dataset.corpus[key] for key in judged]
        # A docstring in the package "copies" may fall into dev or test: then the original is left out too.
        if document.metadata["package"] != "package0":
            assert any(text.startswith(dataset.queries[query].text) for text in texts)
            assert document.text in texts
    assert not [text for text in texts if "def " in text and "shelf" in text]


def test_a_near_duplicate_of_a_test_function_is_left_out(tmp_path, dataset):
    query = next(iter(dataset.qrels["test"]))
    seen = next(iter(dataset.qrels["stage1"]))
    (tmp_path / "code.py").write_text(
        function("original", dataset.queries[query].text, seed="one")
        + function("renamed", dataset.queries[seen].text, seed="one")
        + function("undocumented", "", seed="one")
        + function("other", dataset.queries[seen].text, seed="two")
        + f'class Thing:\n    """{dataset.queries[query].text}.\n\n    More."""\n    attribute = {"x" * 90}\n'
    )
    texts = read_python([tmp_path]).texts
    assert sorted(text[:12] for text in texts) == sorted(
        ["def other(va", "class Thing:", dataset.queries[seen].text[:12]]
    )


def test_texts_come_in_an_order_that_parts_a_function_from_its_docstring(texts, root):
    assert texts == read_python([root]).texts
    assert len(set(texts)) == len(texts)
    shelves = [index for index, text in enumerate(texts) if text.startswith("def sort_river")]
    assert max(shelves) - min(shelves) > 100


def test_texts_without_the_held_out_packages(root, by_package):
    together = "\n".join(read_python([root], split_by="package").texts)
    held_out = [by_package.corpus[key].metadata["name"] for key in by_package.held_out]
    assert held_out and not [name for name in held_out if f"def {name}(" in together]
    training = [by_package.corpus[key].metadata["name"] for key in by_package.training_corpus()]
    assert all(f"def {name}(" in together for name in training)


@pytest.mark.parametrize("split_by", ["hash", "package"])
def test_pairs_are_of_functions_that_are_neither_dev_nor_test(root, dataset, by_package, split_by):
    data = dataset if split_by == "hash" else by_package
    read = read_python([root], split_by)
    asked = {query for query, _ in read.pairs}
    sources = {source for _, source in read.pairs}
    for split in ("dev", "test"):
        for query, judged in data.qrels.get(split, {}).items():
            assert data.queries[query].text not in asked
            assert not sources & {data.corpus[document].text for document in judged}
    trained = {
        (data.queries[query].text, data.corpus[document].text)
        for split in ("stage1", "stage2")
        for query, judged in data.qrels[split].items()
        for document in judged
    }
    assert len(trained & set(read.pairs)) > 0.5 * len(trained)
