"""The recipes for real models: what they say of their memory is what the estimate says."""

import re
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedModel, Qwen2Config

from searchr3.errors import RecipeError
from searchr3.loading import on_meta
from searchr3.model import SearchR3
from searchr3.runs.dry_run import STAGES, Machine, needs
from searchr3.runs.preparation import YOURS, make_dataset, trained_shape
from searchr3.training.estimate import GIB
from searchr3.training.parallel import check_batches
from searchr3.training.recipe import Recipe
from searchr3.training.recipe_file import load_recipe, recipe_path
from searchr3.training.workload import Lengths

# published: hidden, layers, heads, heads of keys, intermediate, rows of the embedding, tied; parameters
SHAPES = {
    "0.5b": ((896, 24, 14, 2, 4864, 151936, True), 494_032_768),
    "1.5b": ((1536, 28, 12, 2, 8960, 151936, True), 1_543_714_304),
    "7b": ((3584, 28, 28, 4, 18944, 152064, False), 7_615_616_512),
}
NAMES = [f"qwen2.5-{size}-{gpus}gpu" for size in SHAPES for gpus in (1, 8)]
PAGE = Path(__file__).parents[2] / "docs" / "real-size.md"


def config(size: str) -> Qwen2Config:
    hidden, layers, heads, keys, intermediate, rows, tied = SHAPES[size][0]
    return Qwen2Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        intermediate_size=intermediate,
        vocab_size=rows,
        tie_word_embeddings=tied,
    )


@pytest.fixture(scope="module")
def shapes() -> dict[str, PreTrainedModel]:
    return {size: on_meta(config(size)) for size in SHAPES}


def peak(name: str, shapes: dict[str, PreTrainedModel], qwen2_model: Path) -> float:
    """GiB of a process, by the estimate; without data, so for texts as long as the recipe allows."""
    recipe, size = load_recipe(name), name.split("-")[1]
    search = SearchR3.from_parts(shapes[size], AutoTokenizer.from_pretrained(qwen2_model))
    model, machine = trained_shape(search, recipe), Machine(processes=processes_of(name))
    lengths = Lengths.assumed(recipe)
    return max(needs(recipe, model, stage, lengths, machine)[1].total for stage in STAGES) / GIB


def processes_of(name: str) -> int:
    return int(name.rpartition("-")[2].removesuffix("gpu"))


def test_there_is_one_for_each_size_and_number_of_gpus() -> None:
    there = {path.stem for path in recipe_path("quickstart").parent.glob("qwen*.yaml")}
    assert there == set(NAMES)


def test_shapes_are_the_published_ones(shapes: dict[str, PreTrainedModel]) -> None:
    assert {size: model.num_parameters() for size, model in shapes.items()} == {
        size: count for size, (_, count) in SHAPES.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_stated_memory_is_the_estimate(
    name: str, shapes: dict[str, PreTrainedModel], qwen2_model: Path
) -> None:
    stated = re.search(r"^# Memory: ([0-9.]+) GiB", recipe_path(name).read_text(encoding="utf-8"), re.M)
    assert stated and float(stated[1]) == round(peak(name, shapes, qwen2_model), 1)


@pytest.mark.skipif(not PAGE.is_file(), reason="not in a checkout")
@pytest.mark.parametrize("name", NAMES)
def test_the_page_states_the_same(name: str) -> None:
    stated = re.search(r"^# Memory: ([0-9.]+) GiB", recipe_path(name).read_text(encoding="utf-8"), re.M)
    row = next(line for line in PAGE.read_text(encoding="utf-8").splitlines() if f"| `{name}`" in line)
    assert stated and f"| {stated[1]} |" in row


@pytest.mark.parametrize("name", NAMES)
def test_batches_can_be_divided_among_the_gpus(name: str) -> None:
    check_batches(load_recipe(name), processes_of(name))


def test_the_data_are_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe: Recipe = load_recipe(NAMES[0])
    assert recipe.data.source == YOURS
    with pytest.raises(RecipeError, match=r"leaves the data to you; add data.source=FOLDER"):
        make_dataset(recipe)
