"""The commands `index` and `search --store`: what they take, show and refuse."""

import json
import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from searchr3.answers import Hit, SearchAnswer
from searchr3.cli import app
from searchr3.cli import search as cli_search
from searchr3.search.summary import Summary

ANSWER = SearchAnswer(
    "files and lines",
    3,
    False,
    [Hit(1, 0.5, "a.py#0", "a.py:3", "read each line", {"heading": "Reader.next"})],
)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def refused(*arguments: str) -> str:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    error = result.stderr.splitlines()[-1]
    assert error.startswith("error: ") and "Traceback" not in result.stderr
    return error.removeprefix("error: ")


def test_your_own_documents_from_folder_to_hit(tiny_model: Path) -> None:
    """Through the real model: index, change, ask, take out, and whatever is refused on the way."""
    docs = Path("docs")
    docs.mkdir()
    (docs / "dates.py").write_text("def parse_date(text):\n    return strictly(text)\n")
    (docs / "lists.md").write_text("# Lists\n\nSort the list in place.\n")
    (docs / "photo.png").write_bytes(b"\x89PNG")
    command = ("index", "docs", "--store", "mine", "--model", str(tiny_model))

    result = run(*command)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == [
        "mine: 2 files in 2 chunks",
        "files: 2 added; chunks: 2 encoded",
        "skipped: 1 of no known kind (.png): docs/photo.png",
    ]

    (docs / "lists.md").unlink()
    again = json.loads(run("index", "docs", "--store", "mine", "--json").stdout)
    expected = {"store": "mine", "files": 1, "chunks": 1, "unchanged": 1, "removed": 1, "encoded": 0}
    assert expected.items() <= again.items()

    answer = json.loads(run("search", "parse the date", "--store", "mine", "--json", "--hybrid").stdout)
    assert answer["thinking_tokens"] > 0
    assert [hit["title"] for hit in answer["hits"]] == ["docs/dates.py:1"]
    assert answer["hits"][0]["metadata"]["heading"] == "parse_date"
    short = ("search", "parse the date", "--store", "mine", "--max-new-tokens")
    assert json.loads(run(*short, "1", "--json").stdout)["thinking_tokens"] == 1
    assert re.match(r"5000 tokens of thought are more than .* ask for at most \d+$", refused(*short, "5000"))
    nothing = run("search", "date", "--store", "mine", "--type", "md", "--no-reasoning")
    assert nothing.stdout == "nothing found\n"

    other = tiny_model.with_name("tiny-model-of-another-length")
    if not other.exists():
        from searchr3.model import SearchR3

        SearchR3(tiny_model, max_length=80).save_pretrained(other)
    words = f"mine: its vectors are of another model, {tiny_model}, not of {other}; index anew into another"
    assert refused("search", "x", "--store", "mine", "--model", str(other)).startswith(words)
    assert refused("index", "docs", "--store", "mine", "--model", str(other)).startswith(words)

    assert run("index", "--store", "mine", "--forget", "docs/dates.py").stdout.startswith("mine: 0 files")
    assert "nothing of that name in mine" in refused("index", "--store", "mine", "--forget", "docs/dates.py")


def test_what_cannot_be_is_told_in_one_line(tiny_model: Path) -> None:
    Path("notes.txt").write_text("text")
    Path("full").mkdir()
    Path("full/file").touch()
    model = ("--model", str(tiny_model))
    assert refused("index", "gone", "--store", "s", *model).startswith(
        "gone: no such file or folder; check it"
    )
    assert refused("index", "notes.txt", "--store", "s").startswith("s: no store; make one with")
    assert refused("index", "notes.txt", "--store", "full", *model).startswith(
        "full: exists already and is no"
    )
    assert refused("index", "notes.txt", "--store", "notes.txt", *model).startswith("notes.txt: ")
    assert refused("index", "notes.txt", "--store", "s", "--model", "nowhere").startswith("nowhere: no such")
    assert not Path("s").exists()
    assert refused("search", "x", "--store", "s").startswith(
        "s: no store; make one with `searchr3 index PATH"
    )
    assert refused("search", "x", "--store", "http://localhost/").startswith(
        "http://localhost/: give Qdrant's"
    )
    for place in ("http://localhost:port/notes", "http://localhost:99999/notes", "http://[::1/notes"):
        assert refused("search", "x", "--store", place).startswith(f"{place}: give Qdrant's address")
    for place in ("http://127.0.0.1:9/notes", "http://[::1]:9/notes"):
        assert f"{place}: Qdrant does not do it" in refused("search", "x", "--store", place)
    assert "--hybrid, --path, --type" in refused("search", "x", "--run", "r", "--hybrid")
    assert refused("search", "x", "--store", "s", "--type", "exe").startswith(
        "--type exe: not known; choose of"
    )
    assert refused("search", " ", "--store", "s").startswith("the query is empty")
    for command in (("search", "x"), ("index", "notes.txt", *model)):
        assert refused(*command, "--store", "").startswith("--store is empty; name a folder")
    assert {path.name for path in Path().iterdir()} == {"notes.txt", "full"}


def test_a_store_that_stays_empty_is_an_error(tiny_model: Path) -> None:
    Path("docs").mkdir()
    Path("docs/scan.pdf").write_bytes(b"%PDF-1.4 broken")
    for _ in range(2):
        result = run("index", "docs", "--store", "mine", "--model", str(tiny_model))
        assert result.exit_code == 1 and "docs/scan.pdf" in result.stdout
        assert (
            result.stderr.splitlines()[-1] == "error: mine: nothing is in it yet: no file of docs can be read"
        )
    Path("docs/a.txt").write_text("text")
    assert run("index", "docs", "--store", "mine").exit_code == 0
    Path("docs/a.txt").unlink()
    assert run("index", "docs", "--store", "mine").exit_code == 0  # it follows what was removed


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "searchr3.search.lance_store", raising=False)
    monkeypatch.setitem(sys.modules, "lancedb", None)
    message = refused("search", "x", "--store", "s")
    assert message == "lancedb is not installed; pip install 'searchr3[search]'"


@pytest.mark.parametrize(
    ("terminal", "environment", "bright"),
    [(True, {}, True), (True, {"NO_COLOR": "1"}, False), (True, {"TERM": "dumb"}, False), (False, {}, False)],
)
def test_words_are_bright_on_a_terminal_only(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
    environment: dict[str, str],
    bright: bool,
) -> None:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    cli_search._show(ANSWER, "reading", True)
    shown = capsys.readouterr().out
    assert ("\x1b[1;33mread\x1b[0m each \x1b[1;33mline\x1b[0m" in shown) == bright
    assert re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines() == [
        "thought (3 tokens, cut off): files and lines",
        "",
        "  1  0.500  a.py:3  Reader.next",
        "            read each line",
    ]


def test_nothing_in_a_file_steers_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b]0;x\x07 text"
    cli_search._show(SearchAnswer(evil, 1, True, [Hit(1, 1, evil, evil, evil, {"heading": evil})]), "q", True)
    cli_search._report(Summary(skipped={evil: "a link"}, missing=[]), "s", False)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\x07" not in shown


def test_a_summary_counts_reasons_and_names_a_few(capsys: pytest.CaptureFixture[str]) -> None:
    skipped = {f"{i}.png": "of no known kind (.png)" for i in range(5)} | {"x": "a link"}
    cli_search._report(Summary(9, 1234, unchanged=9, reused=3, skipped=skipped, missing=["old"]), "s", False)
    assert capsys.readouterr().out.splitlines() == [
        "s: 9 files in 1,234 chunks",
        "files: 9 unchanged; chunks: 0 encoded, 3 taken over from files with the same content",
        "skipped: 5 of no known kind (.png): 0.png, 1.png, 2.png, …",
        "skipped: 1 a link: x",
        "old: not there now; what was indexed of it stays, until --forget old",
    ]
