"""What the benchmarks against other libraries rest on: fair timings, the same texts, tokens and vectors."""

import importlib
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config

from searchr3.conversation import Prompts
from searchr3.dataset import RetrievalDataset
from searchr3.errors import SearchR3Error
from searchr3.loading import on_meta
from searchr3.model import SearchR3
from searchr3.runs.dry_run import STAGES, Machine, needs
from searchr3.training.recipe import Recipe
from searchr3.training.recipe_file import load_recipe
from searchr3.training.workload import Lengths

Import = Callable[[str], ModuleType]
MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Import:
    """Imports a file of `benchmarks/` as a module."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    return importlib.import_module


def test_arms_take_turns_and_each_begins_a_round(benchmark: Import) -> None:
    said: list[str] = []
    arms = {name: lambda name=name: said.append(name) or len(said) for name in "abc"}
    found = benchmark("_timing").in_turn(arms, 3)
    assert "".join(said) == "abc" + "bca" + "cab"
    assert found == {"a": [1, 6, 8], "b": [2, 4, 9], "c": [3, 5, 7]}


def test_a_ratio_is_of_medians_and_its_spread_is_over_rounds(benchmark: Import) -> None:
    found = benchmark("_timing").ratio("r", [1.0, 20.0, 3.0], [2.0, 2.0, 1.0])
    assert found == {"r": 1.5, "r_least": 0.5, "r_most": 10.0}


def test_step_times_leave_the_first_step_out(benchmark: Import, monkeypatch: pytest.MonkeyPatch) -> None:
    timing = benchmark("_timing")
    clock = iter([5.0, 6.0, 8.0, 1.0, 4.0])
    monkeypatch.setattr(timing, "now", lambda: next(clock))
    times = timing.StepTimes()
    times.on_train_begin()
    for _ in range(3):
        times.on_step_end()
    assert times.seconds == [1.0, 2.0]
    times.on_train_begin()  # another training
    for _ in range(2):
        times.on_step_end()
    assert times.seconds == [3.0]


def test_a_clock_sums_calls_by_step_and_leaves_no_trace(benchmark: Import) -> None:
    class Base:
        def work(self, seconds: float) -> float:
            time.sleep(seconds)
            return seconds

    class Worker(Base): ...

    clock = benchmark("_timing").Clock()
    with clock.watch(Worker, "work", "w"):
        assert Worker().work(0.02) == 0.02
        Worker().work(0.02)
        clock.close_step()
        Worker().work(0.01)
        Base().work(0.01)  # not watched
        clock.close_step()
    Worker().work(0.01)
    clock.close_step()
    assert "work" not in vars(Worker)
    first, second, third = clock.steps
    assert first["w"] >= 0.04 > second["w"] >= 0.01 and third == {}


PEAK = """
import numpy as np, _timing
before = _timing.forget_peak()
block = np.ones(64 * 2**20, dtype=np.uint8)
del block
print(_timing.peak() - before)
_timing.forget_peak()
print(_timing.peak() - before)
"""


def test_the_peak_is_of_what_came_and_went() -> None:
    """In a process of its own: what other tests have left may be given back at any moment."""
    place = Path(__file__).parent.parent / "benchmarks"
    told = subprocess.run([sys.executable, "-c", PEAK], cwd=place, capture_output=True, text=True, check=True)
    risen, after = map(float, told.stdout.split())
    assert 60 < risen < 90
    assert after < 30


TEXTS = ["parse the date", "def sort_list(list): return list", "x", "merge two lists lazily " * 40]


@pytest.mark.parametrize("name", ["tiny_model", "qwen2_model"])
@pytest.mark.parametrize("bare", [False, True])
def test_the_rival_reads_the_same_and_gives_the_same_vectors(
    name: str, bare: bool, benchmark: Import, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    pytest.importorskip("sentence_transformers")
    rival = benchmark("_rival")
    prompts = Prompts(embed="") if bare else None
    SearchR3(request.getfixturevalue(name), prompts=prompts).save_pretrained(tmp_path / "model")
    ours = SearchR3(tmp_path / "model", dtype="float32")
    chat = ours.conversation
    special = "a text with <|im_end|> in it"
    texts = rival.cut(chat, [*TEXTS, special])
    assert texts[:3] == TEXTS[:3] and len(texts[3]) < len(TEXTS[3])
    assert len(chat.documents([texts[3]])[0].ids) > chat.max_length - 4
    alike = rival.read_alike(chat, texts)
    assert alike == [True] * 4 + [False]
    model = rival.rival_of(tmp_path / "model", ours.dimension)
    found = model.encode(rival.as_text(chat, texts[:4]), show_progress_bar=False)
    assert found == pytest.approx(ours.encode_document(texts[:4]), abs=1e-5)


def test_the_rival_learns_the_pairs_in_their_order(benchmark: Import) -> None:
    pytest.importorskip("sentence_transformers")
    batches = benchmark("_rival").in_order(list(range(7)), batch_size=3, drop_last=True, generator=None)
    assert list(batches) == [[0, 1, 2], [3, 4, 5]]


def test_arms_of_stage_1_differ_in_what_they_say(benchmark: Import) -> None:
    stage1 = benchmark("stage1")
    alone, whole = (stage1.recipe_of(arm, stage1.FULL).stage1 for arm in ("contrastive", "all_losses"))
    assert alone.info_nce == whole.info_nce > 0
    assert alone.sft == alone.kl == alone.triplet == alone.reasoned_share == 0
    assert min(whole.sft, whole.kl, whole.triplet, whole.reasoned_share) > 0
    assert alone.micro_tokens == whole.micro_tokens and alone.batch_size == whole.batch_size


def test_no_pass_of_the_rival_is_larger_than_ours(benchmark: Import) -> None:
    stage1 = benchmark("stage1")
    size = {"rows": 8, "length": 100}
    limit = stage1.recipe_of("contrastive", stage1.FULL).stage1.micro_tokens
    assert limit == stage1.FULL["rows"] * stage1.FULL["length"]
    found = {arm: stage1.their_passes(arm, size) for arm in (*stage1.THEIRS, stage1.HELPED)}
    assert found["rows"] == {"mini_batch_size": 8} and found["fewer_rows"] == {"mini_batch_size": 2}
    assert found["tokens"]["mini_batch_num_tokens"] == 800
    assert found["fewer_tokens"]["mini_batch_num_tokens"] == 200 == found["sorted"]["mini_batch_num_tokens"]


def test_batches_that_are_sorted_for_the_rival_keep_their_pairs(benchmark: Import) -> None:
    assert benchmark("stage1").batches_sorted([3, 9, 5, 1, 2, 8, 7], 3) == [1, 2, 0, 5, 4, 3, 6]


def test_both_passes_of_the_rival_compute_in_the_precision_of_ours(
    benchmark: Import, tiny_model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    rival = benchmark("_rival")
    recipe = load_recipe("quickstart", ["model.precision=bf16", "stage1.steps=1", "stage1.batch_size=4"])
    search = SearchR3(tiny_model, dtype="float32")
    search.save_pretrained(tmp_path / "model")
    model = rival.rival_of(tmp_path / "model", search.dimension)
    seen: list[tuple[bool, torch.dtype]] = []
    layer = next(module for module in model.modules() if isinstance(module, torch.nn.Linear))
    layer.register_forward_hook(lambda *given: seen.append((torch.is_grad_enabled(), given[2].dtype)))
    loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=2)
    texts = rival.as_text(search.conversation, [*TEXTS[:3], "y"])
    settings = rival.settings_like(recipe, tmp_path / "run")
    trainer = rival.rival_trainer(model, loss, texts, texts, settings)
    trainer.train()
    assert seen == [(False, torch.bfloat16)] * 4 + [(True, torch.bfloat16)] * 4
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_each_loss_is_left_out_and_stands_alone(benchmark: Import) -> None:
    losses = benchmark("losses")
    whole = losses.recipe_of("all", losses.FULL, ()).stage1
    assert all(getattr(whole, name) > 0 for name in losses.LOSSES)
    for name in losses.LOSSES:
        without, only = (
            losses.recipe_of(f"{kind}_{name}", losses.FULL, ()).stage1 for kind in ("without", "only")
        )
        for other in losses.LOSSES:
            assert getattr(without, other) == (0 if other == name else getattr(whole, other))
            assert getattr(only, other) == (getattr(whole, other) if other == name else 0)


def test_losses_are_compared_query_by_query(benchmark: Import) -> None:
    rng = np.random.default_rng(0)
    base = {f"q{number}": value for number, value in enumerate(rng.random(50))}
    arms = {
        "all": {"documents": 9, "pairs": 5, "ndcg": {key: value + 0.1 for key, value in base.items()}},
        "st": {"documents": 9, "pairs": 5, "ndcg": dict(reversed(base.items()))},  # by query, not by place
        "st_half": {"documents": 9, "pairs": 5, "ndcg": {key: value + 0.04 for key, value in base.items()}},
    }
    found = benchmark("losses").figures_of({"pack": arms})
    assert found["pack_minus_st"] == pytest.approx(0.1)
    assert found["pack_minus_st_low"] == pytest.approx(0.1)  # paired: no spread is left
    for key in ("minus_best_st", "minus_best_st_low", "minus_best_st_high"):
        assert found[f"pack_{key}"] == pytest.approx(0.06)
    assert found["pack.st.minus_st"] is None and found["pack.st.minus_all"] == pytest.approx(-0.1)
    assert found["pack.all.low"] < found["pack.all.ndcg"] < found["pack.all.high"]


def test_missing_data_sets_are_left_out_in_one_line(
    benchmark: Import, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = benchmark("losses")
    options = SimpleNamespace(
        quick=False, packs=tmp_path, names=["one"], size=losses.QUICK, overrides=[], work=tmp_path
    )
    assert losses.packs(options) == {}
    assert capsys.readouterr().out == f"one: no such data set in {tmp_path}, left out\n"


def test_shares_of_a_step_are_medians_over_all_rounds(benchmark: Import) -> None:
    def step(seconds: float, refresh: float) -> dict[str, float]:
        parts = {"refresh": refresh, "scoring": 0.1, "reward_forward": 0.2, "reward": refresh + 0.3}
        return {"step": seconds, **parts, "rollout": 0.5, "update": 0.2}

    ours = [
        {"steps": [step(2, 0.1), step(2, 0.3)], "seconds": [2, 2], "tokens": 3, "thinking": 2},
        {"steps": [step(4, 0.5)], "seconds": [4], "tokens": 5, "thinking": 6},
    ]
    again = [{"steps": [step(3, 0.6)], "seconds": [3], "tokens": 4, "thinking": 3}] * 2
    theirs = [{"seconds": [1, 1], "tokens": 5}, {"seconds": [2], "tokens": 5}]
    found = benchmark("stage2").figures_of({"ours": ours, "reread": again, "theirs": theirs}, 8)
    assert found["environment_share_of_step"] == pytest.approx(0.2)
    assert found["environment_share_reread"] == pytest.approx(0.3)
    assert found["samples_ratio"] == pytest.approx(0.5)
    assert found["samples_ratio_reread"] == pytest.approx((8 / 3) / 6)
    assert found["tokens_ratio"] == pytest.approx((3 * 4 + 5 * 2) / (5 * 8 + 5 * 4))  # lengths count
    assert found["samples_a_second_trl"] == pytest.approx(8)
    assert found["completion_tokens"] == found["thinking_tokens"] == 4
    assert found["completion_tokens_trl"] == 5


def test_both_are_asked_the_same_prompts(
    benchmark: Import, tiny_model: Path, toy: RetrievalDataset, tmp_path: Path, toy_recipe: MakeRecipe
) -> None:
    """A query that is cut is left out; of the others trl's trainer makes the ids that ours makes."""
    stage2, search = benchmark("stage2"), SearchR3(tiny_model, dtype="float32", max_length=96)
    chat, (first, *others) = search.conversation, toy.split("stage2")
    long = replace(toy.queries[first], text="parse " * 100)
    data = stage2.asked_alike(replace(toy, queries={**toy.queries, first: long}), chat)
    assert list(data.split("stage2")) == others

    trainer, _ = stage2.plain_grpo(search, data, toy_recipe(), tmp_path)
    asked = [row["prompt"] for row in trainer.train_dataset]
    texts = [data.queries[key].text for key in others]
    assert trainer._tokenize_prompts(asked)[0] == chat.reasoning_prompts(texts)
    assert set(chat.stop_ids) <= set(trainer.generation_config.eos_token_id)

    with pytest.raises(SearchR3Error, match="asked otherwise by trl"):
        stage2.asked_alike(replace(toy, instruction="Find the function."), chat)


def test_the_gpu_benchmark_fits_into_80_gb(benchmark: Import) -> None:
    gpu = benchmark("gpu")
    model = on_meta(Qwen2Config(**gpu.SHAPES["qwen2.5-1.5b"], tie_word_embeddings=True))
    for arm in (gpu.ALONE, ()):
        recipe = gpu.recipe_of(gpu.REAL, arm)
        lengths = Lengths.assumed(recipe, query=256)
        for stage in STAGES:
            assert needs(recipe, model, stage, lengths, Machine())[1].total < 78e9


def test_model_flops_are_those_of_a_forward(benchmark: Import) -> None:
    gpu = benchmark("gpu")
    model = gpu.make_model("tiny", gpu.SMALL).model.cpu()
    model.set_attn_implementation("eager")  # matrix products, which the counter knows
    flops, length = gpu.Flops(model), 48
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros(1, length, dtype=torch.long), logits_to_keep=1, use_cache=False)
    hidden = 2 * length**2 * flops.width * flops.layers  # counted too, though a causal mask hides it
    assert flops.forward(length, 1) + hidden == pytest.approx(counter.get_total_flops(), rel=0.03)
    assert flops.forward(length) / 2 < flops.encoded(length) < flops.forward(length)
