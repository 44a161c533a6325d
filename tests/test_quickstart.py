"""The quickstart itself, shortened: the bundled base and the Python code installed here. `make test-slow`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import searchr3

pytestmark = pytest.mark.slow

SHORT = [
    "data.max_documents=2000",
    "stage1.steps=30",
    "stage1.evaluate_every=15",
    "stage2.steps=4",
    "stage2.evaluate_every=4",
]


def test_the_quickstart_learns_from_installed_code(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(searchr3.__file__).parents[1])}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "searchr3", *arguments]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    shown = run("quickstart", *SHORT)
    metrics = json.loads((tmp_path / "runs/quickstart/metrics.json").read_text(encoding="utf-8"))
    found = json.loads(run("search", "read a file line by line", "--run", "runs/quickstart", "--json"))

    assert "searchr3 search" in shown
    for results in metrics["stages"].values():
        direct, reasoned, bm25 = results["runs"]
        assert 1900 <= results["documents"] <= 2000 and results["queries"] >= 200
        assert min(direct["ndcg@10"], reasoned["ndcg@10"]) > 0.1  # a random ranking has 0.002
        assert 0.3 < bm25["ndcg@10"] < 0.9
    assert len(found["hits"]) == 10 and found["hits"][0]["metadata"]["name"]
