"""Which files are found, and what is said of the others."""

import os
from pathlib import Path

import pytest

from searchr3.search.documents import File, Skipped, find_files
from searchr3.search.kinds import NAMES, kind_of


def found(**roots: Path) -> tuple[list[str], dict[str, str]]:
    both = list(find_files(roots))
    files = [one.name for one in both if isinstance(one, File)]
    return files, {one.name: one.why for one in both if isinstance(one, Skipped)}


def make(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text")


def test_files_come_by_name_and_what_nobody_wrote_is_left_out(tmp_path: Path) -> None:
    make(tmp_path, "b.md", "a/z.py", "a/.secret.md", ".git/x.md", "node_modules/n.js", "env/pyvenv.cfg")
    make(tmp_path, "env/lib/y.py", "picture.png", "Makefile", "a.txt")
    make(tmp_path, "my.index/files.sqlite", "my.index/chunks.lance/_versions/1.json")
    files, skipped = found(docs=tmp_path)
    assert files == ["docs/Makefile", "docs/a/z.py", "docs/a.txt", "docs/b.md"]
    assert skipped == {
        "docs/env": "a Python environment",
        "docs/my.index": "a store",
        "docs/picture.png": "of no known kind (.png)",
    }


def test_gitignore_is_followed_the_nearest_one_first(tmp_path: Path) -> None:
    make(tmp_path, "top/.git/config", "top/docs/a.md", "top/docs/b.log.md", "top/docs/keep/b.log.md")
    make(tmp_path, "top/docs/build/c.md", "top/docs/sub/build/d.md")
    (tmp_path / "top/.gitignore").write_text("*.log.md\n/docs/build/\n# a comment\n")
    (tmp_path / "top/docs/keep/.gitignore").write_text("!b.log.md\n")
    files, skipped = found(docs=tmp_path / "top/docs")
    assert files == ["docs/a.md", "docs/keep/b.log.md", "docs/sub/build/d.md"]
    assert set(skipped.values()) == {"named in a .gitignore"} and len(skipped) == 2


@pytest.mark.parametrize("root", ["top/runs", "top/runs/mine"])
def test_a_folder_that_is_asked_for_is_taken_though_a_gitignore_names_it(tmp_path: Path, root: str) -> None:
    make(tmp_path, "top/.git/config", "top/runs/mine/a.md", "top/runs/mine/b.tmp.md", "top/c.md")
    (tmp_path / "top/.gitignore").write_text("runs/\n")
    (tmp_path / "top/runs/mine/.gitignore").write_text("*.tmp.md\n")
    files, skipped = found(x=tmp_path / root)
    assert [file.rpartition("/")[2] for file in files] == ["a.md"]
    assert list(skipped.values()) == ["named in a .gitignore"]
    assert found(x=tmp_path / "top")[0] == ["x/c.md"]


def test_links_are_not_followed_so_there_are_no_loops(tmp_path: Path) -> None:
    make(tmp_path, "in/a.md", "out/secret.md")
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/out.md").symlink_to(tmp_path / "out/secret.md")
    files, skipped = found(x=tmp_path / "in")
    assert files == ["x/a.md"]
    assert skipped == {"x/loop": "a link", "x/out.md": "a link"}


def test_a_file_given_by_itself_is_taken_whatever_its_name(tmp_path: Path) -> None:
    make(tmp_path, ".hidden.weird")
    files, _ = found(**{".hidden.weird": tmp_path / ".hidden.weird"})
    assert files == [".hidden.weird"]


def test_what_cannot_be_is_told_and_ends_nothing(tmp_path: Path, monkeypatch) -> None:
    make(tmp_path, "a.md", "z.md", "sub/b.md")
    os.mkfifo(tmp_path / "pipe.md")
    with (tmp_path / "large.md").open("wb") as file:
        file.truncate(10_000_001)
    (tmp_path / os.fsdecode(b"caf\xe9.md")).write_text("x")
    real = os.scandir

    def locked(folder):
        if Path(folder).name == "sub":
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(os, "scandir", locked)
    files, skipped = found(d=tmp_path)
    assert files == ["d/a.md", "d/z.md"]
    assert skipped == {
        "d/pipe.md": "no regular file",
        "d/large.md": "larger than 10 MB",
        r"d/caf\udce9.md": "its name is not UTF-8",
        "d/sub": "cannot be read (Permission denied)",
    }


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.MD", "md"), ("a.htm", "html"), ("x/README", "txt"), ("a.pyi", "py"), ("a.png", None), ("a", None)],
)
def test_kinds_by_name(name: str, kind: str | None) -> None:
    of = kind_of(name)
    assert (of and of.name) == kind
    assert kind is None or kind in NAMES
