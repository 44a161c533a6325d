"""What indexing encodes, keeps and removes, in both stores."""

import os
from pathlib import Path

import pytest

from searchr3.errors import SearchR3Error
from searchr3.search.index import forget

LONG = "\n\n".join(f"Paragraph {i} tells of matter {i} and of nothing else at all." for i in range(40))


def test_only_what_changed_is_encoded_and_deletions_are_followed(desk) -> None:
    desk.write("docs/a.md", "# Apples\n\nApples are red.")
    desk.write("docs/b.txt", "Bananas are yellow.")
    desk.write("docs/c.py", "def cherry():\n    return 'dark'\n")
    first = desk.index("docs")
    assert (first.files, first.chunks, first.added, first.encoded) == (3, 3, 3, 3)
    assert desk.find("yellow bananas", k=1) == ["docs/b.txt"]

    assert desk.index("docs").unchanged == 3 and desk.model.encoded == []

    desk.write("docs/b.txt", "Blueberries are blue.")
    os.remove(desk.folder / "docs/c.py")
    again = desk.index("docs")
    assert (again.changed, again.removed, again.unchanged, again.encoded) == (1, 1, 1, 1)
    assert desk.model.encoded == ["Blueberries are blue."]
    assert desk.store.count() == 2
    assert desk.find("yellow bananas", hybrid=True, k=9) == ["docs/b.txt", "docs/a.md"]


def test_a_touched_file_is_not_encoded_again_and_another_size_means_all(desk) -> None:
    path = desk.write("a.md", LONG)
    desk.index("a.md")
    os.utime(path, (1, 1))
    assert desk.index("a.md").encoded == 0
    before = desk.store.count()
    again = desk.index("a.md", size=400)
    assert again.changed == 1 and again.encoded == again.chunks == desk.store.count() < before


def test_what_moves_is_taken_over_without_the_model(desk) -> None:
    desk.write("docs/a.md", LONG)
    first = desk.index("docs")
    (desk.folder / "docs/a.md").rename(desk.folder / "docs/b.md")
    desk.write("docs/copy.md", LONG)
    moved = desk.index("docs")
    assert (moved.encoded, moved.added, moved.removed) == (0, 2, 1)
    assert moved.reused == moved.chunks == desk.store.count() == 2 * first.chunks
    assert sorted(desk.texts()) == ["docs/b.md", "docs/copy.md"]


def test_a_folder_keeps_its_name_however_it_is_spelled(desk, monkeypatch) -> None:
    desk.write("docs/sub/a.md", "Apples.")
    desk.write("docs/b.md", "Bananas.")
    desk.index("docs")
    monkeypatch.chdir(desk.folder / "docs")
    assert desk.index(".").unchanged == 2
    os.remove(desk.folder / "docs/b.md")
    assert desk.index(str(desk.folder / "docs/sub")).removed == 0  # only a part was looked at
    assert set(desk.store.files()) == {"docs/sub/a.md", "docs/b.md"}
    assert desk.index("../docs").removed == 1


def test_a_folder_around_what_is_known_takes_it_over(desk) -> None:
    desk.write("docs/a.md", "Apples.")
    desk.write("src/b.md", "Bananas.")
    desk.index("docs")
    whole = desk.index(".")
    assert whole.encoded == 1 and set(desk.store.files()) == {"docs/a.md", "src/b.md"}
    assert (whole.added, whole.changed, whole.unchanged, whole.reused) == (1, 0, 1, 0)
    assert desk.store.facts().roots == {".": str(desk.folder)}
    os.remove(desk.folder / "docs/a.md")
    assert desk.index("docs").removed == 1


def test_a_root_that_moved_keeps_its_vectors(desk) -> None:
    desk.write("old/a.md", "Apples.")
    desk.index("old")
    (desk.folder / "old").rename(desk.folder / "new")
    moved = desk.index("new")
    assert (moved.encoded, moved.reused, moved.missing) == (0, 1, ["old"])
    assert set(desk.store.files()) == {"old/a.md", "new/a.md"}  # a disk may only be away for a while
    with pytest.raises(
        SearchR3Error, match="old: no such file or folder; check it, or take it out with --forg"
    ):
        desk.index("old")
    assert forget(desk.store, ["old"]).removed == 1
    assert desk.find("apples") == ["new/a.md"] and desk.store.count() == 1
    with pytest.raises(SearchR3Error, match="old: nothing of that name"):
        forget(desk.store, ["old"])


def test_two_folders_of_one_name_are_told_apart(desk, monkeypatch) -> None:
    desk.write("one/docs/a.md", "Apples.")
    desk.write("two/docs/a.md", "Bananas.")
    monkeypatch.chdir(desk.folder / "one")
    desk.index("docs")
    monkeypatch.chdir(desk.folder / "two")
    with pytest.raises(SearchR3Error, match="give this one by its whole path"):
        desk.index("docs")
    desk.index(str(desk.folder / "two/docs"))
    assert set(desk.store.files()) == {"docs/a.md", f"{desk.folder}/two/docs/a.md"}
    (desk.folder / "one").rename(desk.folder / "three")  # now the name is free
    assert desk.index("docs/a.md").added == 0


def test_what_cannot_be_read_is_told_and_its_old_text_stays(desk, monkeypatch) -> None:
    desk.write("docs/a.md", "Apples.")
    desk.write("docs/b.md", "Bananas.")
    desk.index("docs")
    real = Path.read_bytes

    def locked(path: Path) -> bytes:
        if path.name == "a.md":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", locked)
    summary = desk.index("docs")
    assert summary.skipped == {"docs/a.md": "cannot be read (Permission denied)"} and summary.files == 2
    assert "docs/a.md" in desk.find("apples")


def test_what_is_no_longer_text_is_taken_out(desk) -> None:
    desk.write("docs/a.md", "Apples.")
    desk.write("docs/b.md", "Bananas.")
    desk.index("docs")
    desk.write("docs/a.md", b"\0\1\2")
    desk.write("docs/new.md", b"\0\1\2")
    summary = desk.index("docs")
    assert summary.reasons == {"binary": 2} and summary.removed == 1
    assert desk.find("apples bananas") == ["docs/b.md"] and desk.store.count() == 1


def test_empty_files_are_known_and_have_no_chunks(desk) -> None:
    desk.write("docs/a.md", "")
    assert (desk.index("docs").added, desk.index("docs").unchanged, desk.store.count()) == (1, 1, 0)
    assert desk.find("anything") == []


def test_every_chunk_is_in_the_store_with_its_place(desk) -> None:
    desk.write("docs/a.md", LONG)
    desk.index("docs")
    record = desk.store.files()["docs/a.md"]
    rows = desk.store.rows({"docs/a.md": record.version})
    assert [row.number for row in rows] == list(range(record.chunks)) and record.chunks > 8
    assert "".join("".join(row.text.split()) for row in rows) == "".join(LONG.split())
    lines = LONG.split("\n")
    assert all(row.text.split("\n")[0] == lines[row.first - 1] for row in rows)
    assert all(abs((row.vector**2).sum() - 1) < 1e-5 for row in rows)


def test_ctrl_c_loses_at_most_one_batch_of_a_file_of_many(desk) -> None:
    desk.write("docs/a.md", LONG)
    batches = []

    def interrupt(size: int) -> None:
        if len(batches) == 2:
            raise KeyboardInterrupt
        batches.append(size)

    desk.model.on_batch = interrupt
    with pytest.raises(KeyboardInterrupt):
        desk.index("docs", batch=4)
    assert desk.store.count() == 8 and desk.find("matter") == []  # half a file is not searched
    desk.model.on_batch = lambda size: None
    summary = desk.index("docs", batch=4)
    assert summary.encoded == summary.chunks - 8 and desk.store.count() == summary.chunks


def test_another_model_is_refused_with_the_mend(desk) -> None:
    desk.write("a.md", "Apples.")
    desk.index("a.md")
    with pytest.raises(
        SearchR3Error, match=r"of another model, words, not of others; index anew into another"
    ):
        desk.index("a.md", digest="e", model="others")
    with pytest.raises(SearchR3Error, match="as it was before its files changed"):
        desk.index("a.md", digest="e")


def test_a_model_that_cannot_be_used_is_told_before_anything_is_changed(desk) -> None:
    desk.write("a.md", "Apples.")

    def missing():
        raise SearchR3Error("no such model")

    with pytest.raises(SearchR3Error, match="no such model"):
        desk.index("a.md", encoder=missing)
    assert desk.store.facts() is None


def test_one_writer_at_a_time(desk) -> None:
    desk.write("a.md", "Apples.")
    desk.index("a.md")
    with (
        desk.store.writing(),
        pytest.raises(SearchR3Error, match="another `searchr3 index` is at work there"),
    ):
        desk.index("a.md")
    assert desk.index("a.md").unchanged == 1


def test_chunks_of_like_length_are_encoded_together(desk) -> None:
    """So that little is padded; and still each is written in its own place, batch by batch."""
    for i in range(16):
        desk.write(f"docs/{i:02}.md", "word " * (1 if i % 2 else 30))
    batches: list[list[int]] = []
    real = desk.model.encode
    desk.model.encode = lambda rendered: batches.append([*map(len, rendered)]) or real(rendered)
    desk.index("docs", batch=4)
    assert [len({*batch}) for batch in batches] == [1, 1, 1, 1]
    assert all(len(text.split()) == (1 if int(path[5:7]) % 2 else 30) for path, text in desk.texts().items())
