"""The model card: metadata that the Hub reads, and no figure that no file holds."""

import copy
import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from searchr3.conversation import Prompts
from searchr3.errors import DataError
from searchr3.export.card import base_of_run, card
from searchr3.model import SearchR3

sys.path.append(str(Path(__file__).parents[1] / "evaluation"))
from saved_sets import results, save, save_suite

FORMATS = ["st", "onnx", "searchr3"]


def parsed(text):
    found = ModelCard(text, ignore_metadata_errors=False)
    return found.data.to_dict(), found.text


@pytest.mark.parametrize("format", FORMATS)
def test_the_head_is_metadata_of_the_hub(search, format):
    data, text = parsed(card(search, format, "me/mine", base="Qwen/Qwen2.5-1.5B-Instruct"))
    assert data["base_model"] == "Qwen/Qwen2.5-1.5B-Instruct"
    assert data["library_name"] == ("transformers" if format == "searchr3" else "sentence-transformers")
    assert {"searchr3", "retrieval"} <= set(data["tags"]) and ("onnx" in data["tags"]) == (format == "onnx")
    assert "license" not in data and "licence is not stated" in text
    assert "me/mine" in text and ("onnxruntime" in text) == (format == "onnx")


@pytest.mark.parametrize("base", [None, "/home/me/base", "tiny"])
def test_only_a_hub_id_becomes_the_base_in_the_metadata(search, base):
    assert "base_model" not in parsed(card(search, "st", "mine", base=base))[0]


@pytest.mark.parametrize("format", FORMATS)
def test_the_python_in_it_is_python(search, format):
    text = card(search, format, 'a "quoted"/name')
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == (2 if format == "onnx" else 1)
    for block in blocks:
        compile(block, "card", "exec")


def test_vllm_computes_in_the_precision_of_the_weights(search):
    assert "--runner pooling --dtype float32`" in card(search, "st", "mine")
    half = SearchR3.from_parts(copy.deepcopy(search.model).bfloat16(), search.tokenizer)
    assert "--runner pooling`" in card(half, "st", "mine")


def test_the_prompts_come_back_from_it(search):
    prompts = Prompts(
        embed='Say "it":\n```', reason="Denke nach – gründlich.", answer="Vector: <|embed_token|>"
    )
    other = SearchR3.from_parts(search.model, search.tokenizer, prompts)
    text = card(other, "st", "mine", instruction="Find: it")
    (block,) = re.findall(r"```yaml\n(.*?)\n```\n", text, re.DOTALL)
    assert yaml.safe_load(block) == {**prompts.to_dict(), "instruction": "Find: it"}


def test_figures_are_those_of_the_files(search, tmp_path):
    single = save(tmp_path, "single", results(data="a|b <i>", model="m"))
    suite = save_suite(tmp_path / "suite", {"One": results(gain=0.2)})
    _, text = parsed(card(search, "st", "mine", results=[single, suite]))
    found = json.loads(single.read_text())
    rows = [line for line in text.splitlines() if line.startswith("| direct")]
    assert len(rows) == 2
    for run in found["runs"]:
        low, high = run["ci95"]["ndcg@10"]
        assert f"{run['ndcg@10']:.3f} ({low:.3f}–{high:.3f})" in text
    assert r"a\|b \<i\>" in text and "12 queries, 50 documents" in text
    held = json.dumps([found, *(json.loads(one.read_text()) for one in (tmp_path / "suite").glob("*.json"))])
    numbers = {f"{float(number):.3f}" for number in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", held)}
    for shown in re.findall(r"\d\.\d{3}", text.split("## Results")[1]):
        assert shown in numbers


def test_without_results_there_is_no_figure(search):
    part = card(search, "st", "mine").split("## Results")[1]
    assert "None are given" in part and not re.search(r"\d\.\d", part)


def test_results_that_are_none_are_told(search, tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(DataError, match=r"x\.json"):
        card(search, "st", "mine", results=[tmp_path / "x.json"])


@pytest.mark.parametrize(
    ("recipe", "base"),
    [
        ("model: {base: Qwen/Qwen2.5-0.5B-Instruct}", "Qwen/Qwen2.5-0.5B-Instruct"),
        ("recipe: {model: {base: Qwen/Qwen2.5-7B-Instruct}}\nmachine: {}", "Qwen/Qwen2.5-7B-Instruct"),
        ("recipe: null\nmachine: {}", None),
        ("model: {base: null}", None),
        ("model: {base: /data/base}", None),
        ("[1, 2", None),
        ("model: 3", None),
        (None, None),
    ],
)
def test_the_base_is_that_of_the_runs_recipe(tmp_path, recipe, base):
    (tmp_path / "stage2").mkdir()
    if recipe is not None:
        (tmp_path / "recipe.yaml").write_text(recipe)
    assert base_of_run(tmp_path / "stage2") == base
