"""The recipe: validated, told where it is wrong, equal after a round trip; its reference is current."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

import searchr3
from searchr3.errors import RecipeError
from searchr3.training.recipe import Recipe
from searchr3.training.recipe_file import load_recipe, recipe_path
from searchr3.training.recipe_page import describe

PACKAGED = sorted((Path(searchr3.__file__).parent / "recipes").glob("*.yaml"))
ROOT = Path(__file__).parents[2]


def fault(*overrides: str, **values: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(values, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("override", "key", "nearest"),
    [
        ("stage1.temprature=0.1", "stage1.temprature", "temperature"),
        ("sede=1", "sede", "seed"),
        ("stage2.reward.lenght=0.1", "stage2.reward.lenght", "length"),
        ("stage2.environment.neighbors=4", "stage2.environment.neighbors", "neighbours"),
        ("model.lora.alhpa=4", "model.lora.alhpa", "alpha"),
    ],
)
def test_an_unknown_key_is_named_and_the_nearest_suggested(override: str, key: str, nearest: str) -> None:
    message = fault(override)

    assert f"unknown key {key!r}" in message
    assert f"did you mean {nearest!r}?" in message


def test_an_unknown_key_that_resembles_none_gets_the_list_of_those_there_are() -> None:
    message = fault("stage2.reward.xyzzy=1")

    assert "temperature" in message
    assert "free_tokens" in message


def test_all_faults_are_told_at_once() -> None:
    message = fault("stage1.steps=-1", "stage2.stepz=3")

    assert "stage1.steps" in message
    assert "stage2.stepz" in message


@pytest.mark.parametrize(
    "override",
    [
        "seed=-1",
        "seed=4294967296",
        "stage1.steps=-1",
        "stage1.steps=many",
        "data.weight=1e308",
        "stage1.temperature=0",
        "stage1.temperature=.nan",
        "stage1.kl=-0.1",
        "stage1.kl=.inf",
        "stage1.reasoned_share=1.5",
        "stage1.schedule=sometimes",
        "stage2.rollouts=1",
        "stage2.queries=0",
        "stage2.environment.policy=lazy",
        "stage2.environment.budget=0",
        "model.precision=fp8",
        "model.lora.r=0",
        "data.split_by=colour",
        "evaluation.depth=10",
        "stage1=5",
    ],
)
def test_a_value_out_of_range_is_refused_with_its_key(override: str) -> None:
    key, _, value = override.partition("=")

    message = fault(override)

    assert key in message
    assert value.strip(".") in message


def test_shares_of_the_reasoning_sources_must_fit() -> None:
    assert "must not exceed 1" in fault("stage1.noisy_traces=0.7", "stage1.own_samples=0.4")


def test_widths_of_matryoshka_must_fit() -> None:
    stage = load_recipe({}, ["stage1.matryoshka=[64, 256]"]).stage1
    assert stage.widths(512) == {512: 1.0, 64: 1.0, 256: 1.0}
    assert load_recipe({}, ["stage1.matryoshka=64"]).stage1.widths(512) == {512: 1.0, 64: 1.0}
    assert "names a width twice" in fault("stage1.matryoshka=[64, 64]")
    assert "as many as the widths" in fault("stage1.matryoshka=[64]", "stage1.matryoshka_weights=[1, 2]")


def test_micro_batches_must_divide_a_step() -> None:
    both = ("stage2.queries=3", "stage2.rollouts=4")
    assert "stage2: queries × rollouts must be a multiple" in fault(*both, "stage2.accumulation=8")
    assert load_recipe({}, [*both, "stage2.accumulation=12"]).stage2.accumulation == 12
    assert "accumulation × updates" in fault(*both, "stage2.accumulation=4", "stage2.updates=2")
    assert "must be multiples of updates" in fault("stage2.updates=2", "stage2.evaluate_every=25")
    assert "must be multiples of updates" in fault("stage2.updates=2", "stage2.steps=25")
    assert load_recipe({}, ["stage2.updates=4"]).stage2.updates == 4


def test_overrides_are_yaml_with_dotted_keys() -> None:
    before = {"stage1": {"steps": 5}}

    recipe = load_recipe(
        before,
        [
            "stage1.learning_rate=1e-4",
            "stage1.patience=3",
            "stage2.reward.ndcg=0.01",
            "model.lora={r: 4}",
            "model.lora.alpha=8",
            "report_to=[tensorboard, wandb]",
            "data.source=a=b",
            "stage1.patience=null",
        ],
    )

    assert (recipe.stage1.steps, recipe.stage1.learning_rate, recipe.stage1.patience) == (5, 1e-4, None)
    assert recipe.stage2.reward.ndcg == 0.01
    assert recipe.model.lora is not None
    assert (recipe.model.lora.r, recipe.model.lora.alpha) == (4, 8)
    assert recipe.report_to == ("tensorboard", "wandb")
    assert recipe.data.source == "a=b"
    assert before == {"stage1": {"steps": 5}}


def test_one_name_stands_for_a_list_of_one() -> None:
    assert load_recipe({}, ["report_to=tensorboard"]).report_to == ("tensorboard",)


@pytest.mark.parametrize("override", ["stage1.steps", "=3", "stage1.steps={"])
def test_an_override_of_the_wrong_form_is_quoted(override: str) -> None:
    assert repr(override) in fault(override)


def test_a_recipe_never_changes() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_recipe({}).stage1.steps = 3  # type: ignore[misc]


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 10_000),
    st.floats(1e-9, 1.0, allow_nan=False),
    st.sampled_from(["full", "frozen", "neighbourhood"]),
    st.none() | st.integers(1, 99),
)
def test_what_is_dumped_is_read_back(steps: int, rate: float, policy: str, patience: int | None) -> None:
    values = {
        "stage1": {"steps": steps, "learning_rate": rate, "patience": patience},
        "stage2": {"environment": {"policy": policy}},
    }
    recipe = load_recipe(values)

    assert load_recipe(yaml.safe_load(yaml.safe_dump(recipe.dump()))) == recipe


@pytest.mark.parametrize("path", PACKAGED, ids=lambda path: path.stem)
def test_the_recipes_of_the_package_are_valid_and_named_as_their_files(path: Path) -> None:
    assert load_recipe(path.stem).name == path.stem
    assert recipe_path(path.stem) == path


def test_a_file_is_preferred_to_a_recipe_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "quickstart").write_text("name: mine\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    assert load_recipe("quickstart").name == "mine"


def test_an_empty_file_is_the_default_recipe(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n", encoding="utf-8")

    assert load_recipe(tmp_path / "empty.yaml") == Recipe()


def test_the_recipe_of_a_run_can_be_run_again(tmp_path: Path) -> None:
    used = load_recipe({"name": "first", "stage1": {"steps": 7}})
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({"recipe": used.dump(), "machine": {"python": "3"}}), encoding="utf-8")

    assert load_recipe(file) == used


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"stage1: {steps: 3\nseed: 1\n", ":2: not valid YAML"),
        (b"- 1\n- 2\n", "expected keys and values, found list"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"recipe: 5\nmachine: {}\n", "expected keys and values, found int"),
        (
            b"stage1:\n  steps: 3\nseed: 1\nstage1:\n  kl: 0\n",
            ":4: not valid YAML (the key 'stage1' comes twice",
        ),
        (b"stage1:\n  steps: 3\n  steps: 4\n", ":3: not valid YAML (the key 'steps' comes twice; keep one)"),
        (b"stage1:\n  stepz: 3\n", "unknown key 'stage1.stepz'; did you mean 'steps'?"),
    ],
)
def test_a_fault_in_a_file_names_the_file(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)

    with pytest.raises(RecipeError) as caught:
        load_recipe(file)

    assert str(file) in str(caught.value)
    assert words in str(caught.value)


def test_parts_of_a_recipe_may_be_merged(tmp_path: Path) -> None:
    text = "stage1: &a {learning_rate: 0.1, warmup_share: 0.2}\nstage2:\n  <<: *a\n  learning_rate: 0.3\n"
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")

    recipe = load_recipe(tmp_path / "mine.yaml")

    assert (recipe.stage2.learning_rate, recipe.stage2.warmup_share) == (0.3, 0.2)


@pytest.mark.parametrize(
    "name",
    ["nowhere.yaml", "quickstrat", "quickstart.yml", "quickstart.yaml", "there/quickstart", "./quickstart"],
)
def test_a_missing_recipe_is_named_and_those_there_are_listed(name: str) -> None:
    with pytest.raises(RecipeError, match=f"{re.escape(name)}: no such recipe file.*quickstart"):
        load_recipe(name)


def keys_of(section: type[BaseModel], prefix: str = "") -> list[str]:
    found = []
    for name, field in section.model_fields.items():
        options = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = [one for one in options if isinstance(one, type) and issubclass(one, BaseModel)]
        found += keys_of(inner[0], f"{prefix}{name}.") if inner else [prefix + name]
    return found


def test_the_reference_lists_every_key_with_its_default_and_meaning() -> None:
    rows = [line.split(" | ") for line in describe().splitlines() if line.startswith("| `")]

    assert sorted(cells[0].strip("| `") for cells in rows) == sorted(keys_of(Recipe))
    assert all(len(cells) == 4 and cells[3].strip(" |") for cells in rows)
    defaults = {cells[0].strip("| `"): yaml.safe_load(cells[2].strip("`")) for cells in rows}
    assert defaults["stage1.temperature"] == Recipe().stage1.temperature
    assert defaults["stage2.environment.budget"] == Recipe().stage2.environment.budget


def test_the_reference_in_docs_is_current() -> None:
    page = ROOT / "docs" / "recipe.md"

    assert page.read_text(encoding="utf-8") == describe(), (
        "run: python -m searchr3.training.recipe_page > docs/recipe.md"
    )


@pytest.mark.parametrize(
    "key", ["stage1.steps", "stage1.kl", "stage1.matryoshka", "stage1.patience", "model.base"]
)
def test_a_truth_is_no_number(key: str) -> None:
    with pytest.raises(RecipeError, match=f"{key}: is not answered by yes or no \\(got True\\)"):
        load_recipe({}, [f"{key}=yes"])
    assert load_recipe({}, ["data.on_disk=yes"]).data.on_disk is True
