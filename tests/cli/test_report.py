"""`searchr3 report` from end to end."""

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from searchr3.cli import app

sys.path.append(str(Path(__file__).parents[1] / "evaluation"))
from saved_sets import results, save, save_suite


def report(*arguments):
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_a_suite_and_a_file_become_one_page(tmp_path):
    suite = save_suite(tmp_path / "suite", {"One": results()})
    single = save(tmp_path, "single", results(data="other", model="small"))
    page = tmp_path / "deep" / "page.html"
    result = report(suite, single, "--output", page)
    assert result.exit_code == 0, result.output
    assert result.output == f"wrote {page}\n"
    html = page.read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>") and "m/stage2 on paper" in html and "small on other" in html
    assert [one.name for one in page.parent.iterdir()] == ["page.html"]


def test_a_page_is_replaced_only_when_asked_and_results_never(tmp_path):
    single, page = save(tmp_path, "single", results()), tmp_path / "page.html"
    page.write_text("mine")
    result = report(single, "--output", page)
    assert result.exit_code == 1 and "exists already" in result.stderr and page.read_text() == "mine"
    before = single.read_text()
    result = report(single, "--output", single, "--overwrite")
    assert result.exit_code == 1 and "is one of the results" in result.stderr
    assert single.read_text() == before
    result = report(single, "--output", tmp_path, "--overwrite")
    assert result.exit_code == 1 and "is a folder" in result.stderr
    assert report(single, "--output", page, "--overwrite").exit_code == 0
    assert page.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    "name", ["suite/task0.json", "suite/suite.json", "suite/task0.queries.parquet", "single.queries.parquet"]
)
def test_what_belongs_to_results_is_never_replaced(tmp_path, name):
    suite, single = save_suite(tmp_path / "suite", {"One": results()}), save(tmp_path, "single", results())
    before = (tmp_path / name).read_bytes()
    result = report(suite, single, "--output", tmp_path / name, "--overwrite")
    assert result.exit_code == 1 and "is one of the results" in result.stderr
    assert (tmp_path / name).read_bytes() == before


def test_wrong_results_are_one_line_and_leave_no_page(tmp_path):
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"model": 3}')
    result = report(wrong, "--output", tmp_path / "page.html")
    assert result.exit_code == 1
    assert result.stderr == (
        f"error: {wrong}: key 'model' is not a text; give a file that `searchr3 evaluate --output` wrote\n"
    )
    assert not (tmp_path / "page.html").exists()
