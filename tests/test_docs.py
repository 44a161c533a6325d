"""The Python examples of the pages: their imports are there, and those that need only a model run."""

import ast
import re
from pathlib import Path

import pytest

from searchr3.search.index import index
from searchr3.search.work import opened_for_writing

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = {
    f"{page.name}-{number}": code
    for page in PAGES
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S))
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_an_example_imports_is_there(name: str) -> None:
    for line in ast.parse(EXAMPLES[name]).body:
        if isinstance(line, ast.ImportFrom) and (line.module or "").startswith("searchr3"):
            exec(ast.unparse(line), {})


@pytest.mark.parametrize("name", ["README.md-0", "search.md-0", "train-on-your-data.md-0"])
def test_an_example_does_what_it_says(
    name: str,
    tmp_path: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    for run in ("quickstart", "mine"):
        Path("runs", run).mkdir(parents=True)
        Path("runs", run, "stage2").symlink_to(tiny_model)
    if name.startswith("search"):
        Path("docs").mkdir()
        Path("docs/terms.md").write_text("# Refunds\n\nRefunds are paid within five days.")
        store, facts, encoder = opened_for_writing("my.index", "runs/mine/stage2")
        index(store, facts, ["docs"], encoder)
        store.close()
    exec(EXAMPLES[name], {})
    said = capsys.readouterr().out
    assert ("docs/terms.md:1 # Refunds" if name.startswith("search") else "[[") in said
