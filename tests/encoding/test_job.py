"""A whole corpus to vectors: the right ones, each shard once, and nothing mixed."""

from __future__ import annotations

import fcntl
import gzip
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from searchr3 import SearchR3, load_vectors
from searchr3.encoding import job
from searchr3.encoding.worker import run_local
from searchr3.errors import DataError, SearchR3Error


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Which file each shard is, and when it was written."""
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in (folder / "shards").iterdir()
        if not path.name.startswith(".")
    }


@pytest.mark.parametrize(
    "how", [{}, {"format": "parquet", "batch_size": 3}, {"shard_size": 100, "batch_size": 1}]
)
def test_vectors_are_the_models_own_in_the_order_of_the_input(
    encode: Callable, tmp_path: Path, expected: tuple[list[str], np.ndarray], how: dict[str, Any]
) -> None:
    done = encode(**how)
    ids, vectors = load_vectors(tmp_path / "vectors", verify=True)
    assert ids == expected[0]
    np.testing.assert_allclose(vectors, expected[1], atol=1e-5)
    assert done.manifest.complete
    assert (done.rows, done.shards) == (42, len(done.manifest.shards))
    names = {path.name for path in (tmp_path / "vectors").iterdir()}
    assert names == {"manifest.json", "shards"}, "nothing hidden is left"
    assert len(stamps(tmp_path / "vectors")) == len(list((tmp_path / "vectors" / "shards").iterdir()))


def test_queries_have_an_instruction_and_dimensions_can_be_cut(
    encode: Callable, tmp_path: Path, tiny_model: Path, source: Path
) -> None:
    texts = [json.loads(line)["text"] for line in source.read_text("utf-8").splitlines()]
    packed = tmp_path / "queries.jsonl.gz"
    packed.write_bytes(gzip.compress(source.read_bytes()))
    encode(source=packed, kind="queries", instruction="Find code.", dim=8)
    wanted = SearchR3(tiny_model).encode_query(texts, instruction="Find code.", dim=8)
    np.testing.assert_allclose(load_vectors(tmp_path / "vectors").vectors, wanted, atol=1e-5)
    with pytest.raises(SearchR3Error, match="an instruction is for queries"):
        encode(instruction="Find code.")


def test_prompts_and_length_are_taken_over(encode: Callable, tmp_path: Path, tiny_model: Path) -> None:
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text("embed: Represent the list.")
    manifest = encode(prompts=prompts, max_length=64).manifest
    assert manifest.settings.prompts["embed"] == "Represent the list."
    assert manifest.settings.max_length == 64
    texts = [json.loads(line)["text"] for line in Path(manifest.input.path).read_text("utf-8").splitlines()]
    row = next(row for row, text in enumerate(texts) if len(text.split()) > 50)
    own = SearchR3(tiny_model, max_length=64, prompts=prompts)
    documents = [json.loads(line) for line in Path(manifest.input.path).read_text("utf-8").splitlines()]
    text = "\n".join(filter(None, (documents[row]["title"], documents[row]["text"])))
    found = load_vectors(tmp_path / "vectors").vectors[row]
    np.testing.assert_allclose(found, own.encode_document([text])[0], atol=1e-5)


def test_finished_shards_stay_and_damaged_or_missing_ones_are_made_anew(
    encode: Callable, tmp_path: Path, expected: tuple[list[str], np.ndarray]
) -> None:
    encode()
    folder = tmp_path / "vectors"
    before = stamps(folder)
    assert encode().shards == 0
    assert stamps(folder) == before

    flipped, cut, missing = (folder / "shards" / f"0000{number}.safetensors" for number in (0, 2, 3))
    content = flipped.read_bytes()
    flipped.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    cut.write_bytes(content[:-1])
    missing.unlink()
    done = encode(batch_size=7)
    assert (done.shards, done.rows, done.manifest.complete) == (3, 30, True)
    after = stamps(folder)
    kept = {name for name in after if after[name] == before[name]}
    assert kept == {"00001.safetensors", "00004.safetensors"}
    ids, vectors = load_vectors(folder, verify=True)
    assert ids == expected[0]
    np.testing.assert_allclose(vectors, expected[1], atol=1e-5)


def test_an_interrupted_run_keeps_what_is_finished(encode: Callable, tmp_path: Path) -> None:
    def stopped(work: Any, shards: Any, tell: Any) -> None:
        run_local(work, shards[:2], tell)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(engine=stopped)
    before = stamps(tmp_path / "vectors")
    assert len(before) == 2
    with pytest.raises(DataError, match="not all shards"):
        load_vectors(tmp_path / "vectors")
    assert encode().shards == 3
    assert before.items() <= stamps(tmp_path / "vectors").items()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dim": 8}, "dimension 32, not 8"),
        ({"dtype": "float16"}, "dtype 'float32', not 'float16'"),
        ({"format": "parquet"}, "format"),
        ({"shard_size": 9}, "shard_size 10, not 9"),
        ({"max_length": 50}, "max_length 96, not 50"),
        ({"precision": "float32"}, "precision"),
        ({"kind": "queries"}, "kind 'documents', not 'queries'"),
    ],
)
def test_another_setting_in_the_same_folder_is_refused(
    finished: Callable, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=f"holds vectors of {words}.*another --output"):
        finished(**change)


def test_another_model_or_input_in_the_same_folder_is_refused(
    finished: Callable, qwen2_model: Path, source: Path, tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="holds vectors of another model"):
        finished(model=qwen2_model)
    other = tmp_path / "corpus.jsonl"
    other.write_text(source.read_text("utf-8") + "\n", "utf-8")
    with pytest.raises(DataError, match="holds vectors of another input"):
        finished(source=other)
    # the same content elsewhere is the same
    shutil.copy(source, other)
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("of no account")
    assert finished(source=other, model=tmp_path / "model").shards == 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, source: Path) -> Callable:
    folder = tmp_path_factory.mktemp("finished") / "vectors"
    wanted = {"model": tiny_model, "source": source, "output": folder, "shard_size": 10}
    job.encode_file(**wanted)
    return lambda **changes: job.encode_file(**(wanted | changes))


def test_bad_input_leaves_nothing_behind(encode: Callable, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"_id": "a", "text": "x"}\n{"_id": "a", "text": "y"}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl:2: the id 'a' comes twice"):
        encode(source=bad)
    with pytest.raises(SearchR3Error, match="--dim 33: this model's vectors have 32"):
        encode(dim=33)
    with pytest.raises(SearchR3Error, match="no such folder"):
        encode(model="no/such/model")
    with pytest.raises(SearchR3Error, match="leaves no room"):
        encode(max_length=5)
    assert list(tmp_path.iterdir()) == [bad]


def test_a_folder_with_something_else_is_refused(encode: Callable, tmp_path: Path) -> None:
    (tmp_path / "vectors").mkdir()
    (tmp_path / "vectors" / "mine.txt").touch()
    with pytest.raises(SearchR3Error, match="exists already and holds no manifest"):
        encode()
    with pytest.raises(SearchR3Error, match="is no folder"):
        encode(output=tmp_path / "vectors" / "mine.txt" / "below")


def test_two_at_once_are_refused(encode: Callable, tmp_path: Path) -> None:
    (tmp_path / "vectors").mkdir()
    with (tmp_path / "vectors" / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(SearchR3Error, match="another `searchr3 encode` is at work there"):
            encode()
    assert encode().shards == 5, "a lock that nobody holds is none"


def test_an_input_that_changes_on_the_way_is_told(encode: Callable, tmp_path: Path, source: Path) -> None:
    other = tmp_path / "corpus.jsonl"
    shutil.copy(source, other)

    def meddled(work: Any, shards: Any, tell: Any) -> None:
        run_local(work, shards, tell)
        other.write_text(source.read_text("utf-8") + "\n", "utf-8")

    with pytest.raises(DataError, match="changed while it was encoded"):
        encode(source=other, engine=meddled)
    with pytest.raises(DataError, match="not all shards"):
        load_vectors(tmp_path / "vectors")


def test_vectors_that_are_no_numbers_are_told(encode: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        SearchR3, "encode_document", lambda _, texts, **__: np.full((len(texts), 32), np.nan, np.float32)
    )
    with pytest.raises(SearchR3Error, match="vectors that are no numbers"):
        encode()


def test_progress_counts_every_row(encode: Callable, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    encode(progress=lambda *news: told.append(news))
    counts = [done for what, done, total in told if what == "encoded" and total == 42]
    assert counts == sorted(counts)
    assert counts[-1] == 42
    (tmp_path / "vectors" / "shards" / "00001.safetensors").unlink()
    told.clear()
    encode(progress=lambda *news: told.append(news))
    assert min(done for what, done, _ in told if what == "encoded") > 32, "what was there is counted"


def test_killed_at_any_moment_only_what_is_missing_is_encoded_again(
    encode: Callable, tmp_path: Path, tiny_model: Path, source: Path, expected: tuple[list[str], np.ndarray]
) -> None:
    """Moments are what the process does to the disk; see killed.py."""
    worker = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("killed.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def run(folder: Path, moment: int | None) -> int:
        wanted = {"model": str(tiny_model), "source": str(source), "output": str(folder), "shard_size": 15}
        worker.stdin.write(json.dumps({"moment": moment, "wanted": wanted}) + "\n")
        worker.stdin.flush()
        return int(worker.stdout.readline())

    moments = run(tmp_path / "whole", None)
    assert moments > 20
    found = set()
    for moment in [0, moments - 1, *random.Random(0).sample(range(1, moments - 1), 8)]:
        folder = tmp_path / str(moment)
        assert run(folder, moment) == -9
        before = stamps(folder) if (folder / "shards").exists() else {}
        done = encode(output=folder, shard_size=15)
        assert done.shards == 3 - len(before), moment
        assert before.items() <= stamps(folder).items()
        assert [*folder.rglob(".*")] == []
        ids, vectors = load_vectors(folder, verify=True)
        assert ids == expected[0]
        np.testing.assert_allclose(vectors, expected[1], atol=1e-5)
        found.add(done.shards)
    assert {0, 3} < found, "the kills fell on both ends and between"
    worker.stdin.close()
    assert worker.wait(30) == 0
