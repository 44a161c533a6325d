"""What paths are called, and what becomes of the roots that are known."""

import pytest

from searchr3.errors import SearchR3Error
from searchr3.search.roots import Plan, plan


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    for name in ("docs/api", "src", "else/docs"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "src/a.py").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_paths_are_called_as_they_were_given(home) -> None:
    found = plan({}, ["./docs/", "src/a.py", home / "else"])
    assert found.roots == {
        "docs": f"{home}/docs",
        "src/a.py": f"{home}/src/a.py",
        f"{home}/else": f"{home}/else",
    }
    assert {name: str(place) for name, place in found.walks.items()} == found.roots


def test_a_part_of_a_root_is_looked_through_under_its_name(home) -> None:
    found = plan({"docs": f"{home}/docs"}, [home / "docs/api", "docs/../docs"])
    assert found.roots == {"docs": f"{home}/docs"}
    assert [*found.walks] == ["docs/api", "docs"]
    assert found.root_of("docs/api") == "docs"
    assert found.covers("docs/x.md", "docs") and not found.covers("docs2/x.md", "docs2")


def test_a_link_to_a_root_is_the_root(home) -> None:
    (home / "link").symlink_to(home / "docs")
    assert [*plan({"docs": f"{home}/docs"}, ["link"]).walks] == ["docs"]


def test_a_folder_around_takes_over(home) -> None:
    found = plan({"docs": f"{home}/docs", "x": "/far"}, ["."])
    assert found.roots == {"x": "/far", ".": str(home)} and found.absorbed == {"docs"}
    assert found.covers("docs/a.md", "docs")


def test_one_name_means_one_place_as_long_as_it_is_there(home) -> None:
    known = {"docs": f"{home}/else/docs"}
    for given in ("docs", "docs/api"):
        with pytest.raises(SearchR3Error, match=r"docs is .*/else/docs in this store; give this one by"):
            plan(known, [given])
    assert plan({"docs": f"{home}/gone"}, ["docs"]) == Plan({"docs": f"{home}/docs"}, {"docs": home / "docs"})


def test_what_is_not_there_is_told() -> None:
    with pytest.raises(SearchR3Error, match="nowhere: no such file or folder; check it, or take it out with"):
        plan({}, ["nowhere"])
