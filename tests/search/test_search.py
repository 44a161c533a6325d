"""Asking: what is found, how it is shown, and that both stores answer alike."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import QdrantClient

from searchr3.errors import SearchR3Error
from searchr3.search.lance_store import LanceStore
from searchr3.search.qdrant_store import QdrantStore
from searchr3.search.search import StoreSearch, chosen_paths, known_kinds
from searchr3.search.snippet import marked, snippet
from searchr3.search.store import Row
from searchr3.search.words import _stem, fused, index_words

from desk import Desk, WordModel, vectors  # isort: skip

WORDS = [
    "apple",
    "river",
    "stone",
    "cloud",
    "paper",
    "glass",
    "metal",
    "wheel",
    "light",
    "sound",
    "green",
    "north",
]


@pytest.fixture
def library(desk):
    """Forty files of three kinds, of a few words each."""
    rng = np.random.default_rng(0)
    for i in range(40):
        desk.write(f"docs/{'ab'[i % 2]}/{i}.{('md', 'txt', 'py')[i % 3]}", " ".join(rng.choice(WORDS, 6)))
    desk.write("docs/rare.md", "# Zanzibar\n\nThe getFileNames of zanzibar parsers.")
    desk.index("docs")
    return desk


def test_an_answer_has_the_thought_and_places_to_read(library) -> None:
    library.model.said = "stone wheel"
    answer = StoreSearch(library.store, library.model).ask("zanzibar file", k=3)
    assert (answer.reasoning, answer.thinking_tokens, answer.emitted) == ("stone wheel", 2, True)
    direct = StoreSearch(library.store, library.model).ask("zanzibar file names", k=3, reasoning=False)
    hit = direct.hits[0]
    assert (direct.reasoning, hit.rank, hit.title) == ("", 1, "docs/rare.md:1")
    assert hit.metadata == {
        "path": "docs/rare.md",
        "type": "md",
        "heading": "Zanzibar",
        "line": "1",
        "last_line": "3",
        "text": "# Zanzibar\n\nThe getFileNames of zanzibar parsers.",
    }
    assert [hit.score for hit in direct.hits] == sorted([hit.score for hit in direct.hits], reverse=True)


def test_nearest_is_exact_and_scores_are_cosines(library) -> None:
    rows = [
        row for path, one in library.store.files().items() for row in library.store.rows({path: one.version})
    ]
    query = library.model.encode_query(["stone river"], None)[0]
    scores = np.stack([row.vector for row in rows]) @ query
    wanted = sorted(zip(-scores, [row.path for row in rows], strict=True))[:7]
    found = StoreSearch(library.store, library.model).rows("", query, 7)
    assert np.allclose([score for _, score in found], [-score for score, _ in wanted], atol=1e-6)
    assert {row.path for row, score in found if score > found[-1][1] + 1e-6} <= {path for _, path in wanted}


def test_hybrid_finds_a_word_that_the_vectors_bury(library) -> None:
    def buried(text: str) -> np.ndarray:
        return library.model.encode_query(["stone river apple"], None)[0]

    search = StoreSearch(library.store, library.model)
    plain = search.rows("parser", buried("x"), 5)
    mixed = search.rows("parser", buried("x"), 5, hybrid=True)
    assert "docs/rare.md" not in [row.path for row, _ in plain]
    assert "docs/rare.md" in [row.path for row, _ in mixed]
    assert (
        search.rows("of the", buried("x"), 5, hybrid=True)[0][0].path == plain[0][0].path
    )  # stop words alone


def test_filters_by_path_and_type(library) -> None:
    def found(**filters: object) -> set[str]:
        both = [set(library.find("stone light", k=99, hybrid=hybrid, **filters)) for hybrid in (False, True)]
        assert both[0] == both[1]
        return both[0]

    assert len(found()) == 41
    assert all(path.endswith(".py") for path in found(kinds=["py"])) and len(found(kinds=["py"])) == 13
    assert found(paths=["docs/a"]) == {path for path in found() if path.startswith("docs/a/")}
    mixed = {"docs/b/15.md", "docs/a/12.md", "docs/a/18.md", "docs/rare.md"}
    assert found(paths=["*/1?.md", "docs/rare.md"]) == mixed
    assert found(paths=["docs/a"], kinds=["md"]) == found(paths=["docs/a/*.md"])
    assert found(paths=["elsewhere"]) == found(paths=["../../etc/*"]) == set()


def test_both_stores_answer_alike(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    desks = [
        Desk(LanceStore(tmp_path / "store", create=True), WordModel(), tmp_path),
        Desk(QdrantStore(QdrantClient(":memory:"), "notes"), WordModel(), tmp_path),
    ]
    rng = np.random.default_rng(1)
    for i in range(60):
        desks[0].write(f"docs/{i}.md", " ".join(rng.choice(WORDS, 8)))
    for desk in desks:
        desk.index("docs")
    for query in ("stone river", "green", "cloud sound paper"):
        answers = [StoreSearch(desk.store, desk.model).ask(query, 20, reasoning=False) for desk in desks]
        assert answers[0] == answers[1]
        one, other = (set(desk.find(query, k=10, hybrid=True)) for desk in desks)
        assert len(one & other) >= 7  # the servers' own BM25 differ a little
    for desk in desks:
        desk.store.close()


def test_more_than_memory_holds_is_searched_on_the_disk(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    desk = Desk(LanceStore(tmp_path / "store", create=True), WordModel(), tmp_path)
    rng = np.random.default_rng(1)
    for i in range(300):  # an index wants 256 rows
        desk.write(f"docs/{i}.{('md', 'txt')[i % 2]}", " ".join(rng.choice(WORDS, 8)))
    desk.index("docs")
    asked = StoreSearch(desk.store, desk.model)
    held = [asked.ask("stone river", 5, False, kinds=kinds) for kinds in ([], ["txt"])]
    monkeypatch.setattr("searchr3.search.lance_store.IN_MEMORY", 0)
    desk.write("docs/300.md", "something else")
    desk.index("docs")  # makes the index
    assert desk.store._all_rows() is None
    found = [asked.ask("stone river", 5, False, kinds=kinds) for kinds in ([], ["txt"])]
    for one, other in zip(held, found, strict=True):
        assert one.hits[0].score == other.hits[0].score  # an index of this kind may miss some
        assert {hit.metadata["type"] for hit in other.hits} <= {hit.metadata["type"] for hit in one.hits}
    desk.store.close()


def test_rows_of_other_versions_never_show_however_many(library) -> None:
    vector = library.model.encode_query(["stone river"], None)[0]
    before = library.find("stone river", k=5)
    stray = [Row("docs/a/0.md", "old", i, "md", "stone river", "", 1, 1, False, vector) for i in range(90)]
    library.store.add(stray)
    library.store.add(
        [Row("docs/new.md", "v", i, "md", "stone river", "", 1, 1, False, vector) for i in range(30)]
    )
    assert library.find("stone river", k=5) == before
    assert set(library.find("stone river", k=5, hybrid=True)) <= set(library.store.files())


class Turning:
    """A store in which something happens just before its first call of one name."""

    def __init__(self, store, moment: str, happens):
        self.store, self.moment, self.happens = store, moment, happens

    def __getattr__(self, name: str):
        if name == self.moment:
            self.moment = ""
            self.happens()
        return getattr(self.store, name)


@pytest.mark.parametrize(
    ("moment", "hybrid"), [("files", False), ("files", True), ("matching", True), ("nearest", False)]
)
def test_a_file_that_is_indexed_meanwhile_is_found_as_it_was_or_as_it_is(desk, moment, hybrid) -> None:
    for name, text in {"a": "stone river", "b": "stone", "c": "river", "d": "stone glass"}.items():
        desk.write(f"docs/{name}.md", text)
    desk.index("docs")
    vector = desk.model.encode_query(["stone river"], None)[0]

    def turned() -> None:
        old = desk.store.files()["docs/a.md"]
        texts = ["stone river anew", "glass", "river of stone"]
        rows = [
            Row(old.path, "new", number, "md", text, "", 1, 1, False, vectors([text])[0])
            for number, text in enumerate(texts)
        ]
        desk.store.add(rows)
        desk.store.put([replace(old, version="new", chunks=3)])
        desk.store.remove({old.path: "new"})

    def found(store) -> list[tuple[str, str, int, float]]:
        rows = StoreSearch(store, desk.model).rows("stone river", vector, 2, hybrid)
        return [(row.path, row.version, row.number, score) for row, score in rows]

    meanwhile = found(Turning(desk.store, moment, turned))
    assert meanwhile == found(desk.store)
    assert ("docs/a.md", "new") in [one[:2] for one in meanwhile]


@pytest.mark.parametrize(("query", "words"), [("  ", "is empty"), ("caf\udce9", "half a character")])
def test_what_is_no_query_is_told(library, query: str, words: str) -> None:
    with pytest.raises(SearchR3Error, match=words):
        library.find(query)


def test_kinds_by_name_or_ending() -> None:
    assert known_kinds(["md", ".markdown", "PYI"]) == {"md", "py"}
    with pytest.raises(SearchR3Error, match="--type docx: not known; choose of"):
        known_kinds(["docx"])


@pytest.mark.parametrize("pattern", ["./docs/a", "docs/a/", "docs/a/*", "docs/[a]/*.md", "*.md"])
def test_patterns(pattern: str) -> None:
    assert chosen_paths(["docs/a/x.md", "docs/ab.txt"], [pattern]) == {"docs/a/x.md"}


def test_the_pattern_of_the_folder_one_stands_in() -> None:
    assert chosen_paths(["docs/a.md", "b.md", "/far/c.md", "../d.md"], ["."]) == {"docs/a.md", "b.md"}


@pytest.mark.parametrize("hybrid", [False, True])
def test_any_number_of_hits_may_be_asked_for(library, hybrid: bool) -> None:
    search = StoreSearch(library.store, library.model)
    assert search.ask("apple", 2**63, hybrid=hybrid).hits == search.ask("apple", 99, hybrid=hybrid).hits


def test_words_are_split_and_stemmed() -> None:
    assert index_words("The HTTPServers of read_lines2") == ["http", "server", "read", "lines2"]


def test_no_word_is_so_long_that_it_fills_the_memory() -> None:
    before = _stem.cache_info().currsize
    assert index_words("x" * 100_000) == ["x" * 100_000]
    assert _stem.cache_info().currsize == before


@given(st.lists(st.lists(st.sampled_from("abcdefg"), unique=True), min_size=1, max_size=3))
def test_fusion_holds_everything_once_and_rewards_agreement(rankings: list[list[str]]) -> None:
    result = fused(rankings)
    assert sorted(one for one, _ in result) == sorted({one for ranking in rankings for one in ranking})
    assert [score for _, score in result] == sorted([score for _, score in result], reverse=True)
    for one, score in result:
        assert score == pytest.approx(sum(1 / (61 + r.index(one)) for r in rankings if one in r))


@given(st.text(max_size=600), st.lists(st.sampled_from(WORDS), max_size=3), st.integers(40, 240))
def test_a_snippet_is_a_part_of_the_text(text: str, words: list[str], length: int) -> None:
    shown = snippet(text, words, length)
    assert len(shown) <= length
    assert shown.strip("…") in " ".join(text.split()) or "…" in text
    for start, end in marked(shown, words):
        assert 0 <= start < end <= len(shown)


def test_a_snippet_shows_where_the_words_are() -> None:
    text = "filler words " * 60 + "the wanted parser stands here " + "more filler " * 60
    shown = snippet(text, index_words("wanted parsers"), 100)
    assert "wanted parser stands" in shown and shown.startswith("…") and shown.endswith("…")
    assert [shown[a:b] for a, b in marked(shown, index_words("wanted parsers"))] == ["wanted", "parser"]
