"""Sets of results: found wherever they lie, and refused in one line where they are wrong."""

import json
from dataclasses import replace

import pytest
from saved_sets import enriched, results, save, save_suite

from searchr3.errors import DataError
from searchr3.evaluation.collection import read_collection, weights

GOOD = enriched(results(queries=4).summary)


def changed(*path_and_value):
    """GOOD with another value at a path of keys."""
    *path, value = path_and_value
    found = place = json.loads(json.dumps(GOOD))
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return found


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (
            changed("runs", 0, "kind", "other"),
            r"'runs\[0\].kind' input should be 'own', 'control' or 'baseline'",
        ),
        (changed("runs", 0, "ndcg@10", 1.5), r"'runs\[0\].ndcg@10' .*less than"),
        (changed("runs", 0, "ndcg@10", "0.5"), r"'runs\[0\].ndcg@10' is not a number"),
        (changed("runs", 0, "ci95", "ndcg@10", [0.1]), r"'runs\[0\].ci95.ndcg@10\[1\]' is missing"),
        (changed("runs", 1, "cost", "seconds_per_query", -1), r"cost.seconds_per_query' .*greater than"),
        (changed("curves", "budget", 1, "tokens", -4), r"'curves.budget\[1\].tokens' .*greater than"),
        (changed("curves", "samples", {}), r"'curves.samples' is not a list"),
        (changed("examples", "helped", 0, "text", 7), r"'examples.helped\[0\].text' is not a text"),
        (changed("examples", "hurt", 0, "relevant", "t"), r"'examples.hurt\[0\].relevant' is not a list"),
        (changed("differences", 0, "p", None), r"'differences\[0\].p' is not a number"),
        (changed("adaptive", 3), "'adaptive' is not an object"),
        ({"tasks": [{"task": "x"}]}, r"'tasks\[0\].file' is missing"),
        ({"stages": {"stage1": {}}}, "'stages.stage1.model' is missing"),
        ({}, "'model' is missing"),
        ("[", "not valid JSON"),
        ("[" * 5000, "not valid JSON"),
        ('{"model": "\\ud800"}', "not valid JSON"),
        (changed("runs", 0, "seconds", float("nan")), r"'runs\[0\].seconds' input should be a finite number"),
        ("7", "not a JSON object"),
    ],
)
def test_what_is_wrong_is_one_line_with_file_key_and_mend(tmp_path, content, fault):
    place = tmp_path / "r.json"
    place.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=fault) as caught:
        read_collection([place])
    message = str(caught.value)
    assert message.startswith(str(place)) and "; " in message and "\n" not in message


def test_folders_and_files_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match=r"holds neither suite\.json nor metrics\.json"):
        read_collection([tmp_path])
    with pytest.raises(DataError, match="no such file"):
        read_collection([tmp_path / "none.json"])
    suite = save_suite(tmp_path / "s", {"One": results()})
    (suite / "task0.json").unlink()
    with pytest.raises(DataError, match=r"task0\.json: no such file"):
        read_collection([suite])


def test_the_same_results_twice_are_refused(tmp_path):
    suite = save_suite(tmp_path / "s", {"One": results()})
    for again in (suite, suite / "suite.json", suite / "task0.json", suite / ".." / "s"):
        with pytest.raises(DataError, match="named twice"):
            read_collection([suite, again])


def test_broken_values_are_refused(tmp_path):
    place = save(tmp_path, "r", results())
    (tmp_path / "r.queries.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match="does not hold the values of each query"):
        _ = read_collection([place]).evaluations[0].values


def test_a_difference_is_found_whichever_way_round(tmp_path):
    found = results().summary
    there = next(
        r for r in found["differences"] if (r["a"], r["b"], r["metric"]) == ("reasoned", "direct", "ndcg@10")
    )
    low, high = there["ci95"]
    there |= {"a": "direct", "b": "reasoned", "mean": -there["mean"], "ci95": [-high, -low]}
    (tmp_path / "r.json").write_text(json.dumps(found))
    (one,) = read_collection([tmp_path / "r.json"]).evaluations
    row = one.difference("reasoned", "direct")
    assert (row.a, row.b, row.ci95) == ("reasoned", "direct", (low, high))
    assert row.mean == -there["mean"]
    assert one.difference("reasoned", "nobody") is None


def test_a_suite_says_the_corrected_p(tmp_path):
    suite = save_suite(tmp_path / "s", {"One": results()})
    (one,) = read_collection([suite]).evaluations
    assert one.name == "One" and one.difference("reasoned", "direct").p_holm == 0.4321


def test_a_suite_that_is_older_than_its_results_is_refused(tmp_path):
    """As after a task was evaluated again by itself: its p was corrected among others than these."""
    suite = save_suite(tmp_path / "s", {"One": results(), "Two": results(data="b")})
    save(suite, "task1", results(0.2, data="b"))
    with pytest.raises(DataError, match=r"suite\.json: is older than task1\.json; evaluate the suite again"):
        read_collection([suite])


def test_one_name_with_other_files_is_another_model(tmp_path):
    """Trained further between two evaluations; older results do not tell."""
    found = [results(data=name) for name in "abc"]
    told = [replace(one, extras={"files": files}) for one, files in zip(found, ("x", "x", "y"), strict=True)]
    collection = read_collection([save(tmp_path, one.data, one, rich=False) for one in told])
    assert [[one.name for one in group] for group in collection.groups] == [["a", "b"], ["c"]]
    collection = read_collection([save(tmp_path, f"{one.data} 2", one, rich=False) for one in found])
    assert len(collection.groups) == 1


def test_names_tell_evaluations_apart(tmp_path):
    found = [results(data="x"), results(data="x", model="other"), results(data="y"), results(data="y")]
    paths = [save(tmp_path, f"r{i}", one) for i, one in enumerate(found)]
    names = [one.name for one in read_collection(paths).evaluations]
    assert names[:2] == ["x · m/stage2", "x · other"]
    assert names[2:] == [f"y · {paths[2]}", f"y · {paths[3]}"]


def test_a_group_of_tasks_counts_as_one(tmp_path):
    tasks = {name: results(data=name) for name in ("alone", "forum 1", "forum 2")}
    suite = save_suite(tmp_path / "s", tasks)
    content = json.loads((suite / "suite.json").read_text())
    for task in content["tasks"][1:]:
        task["group"] = "forums"
    (suite / "suite.json").write_text(json.dumps(content))
    assert weights(read_collection([suite]).evaluations) == [0.5, 0.25, 0.25]
    (suite / "suite.json").write_text(json.dumps(content | {"tasks": content["tasks"][:2]}))
    assert weights(read_collection([suite]).evaluations) == [0.5, 0.5]
