"""vLLM as the engine of the rollouts, by a stand-in (`vllm_stand_in.py`); vLLM itself was not run here."""

import importlib.util
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from trl.generation.vllm_generation import VLLMGeneration

from searchr3.dataset import RetrievalDataset
from searchr3.errors import SearchR3Error
from searchr3.model import SearchR3
from searchr3.training import rollout_engine
from searchr3.training.adapter import add_adapter
from searchr3.training.recipe import Recipe
from searchr3.training.rollout_engine import (
    GenerationRecipe,
    check_installed,
    check_server,
    engine_arguments,
)
from searchr3.training.stage2 import train_stage2

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(scope="module")
def vllm() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "vllm_stand_in", Path(__file__).with_name("vllm_stand_in.py")
    )
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def unchanged_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL writes its rank there in colocate mode: what trains next would think itself one of several."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


@pytest.fixture
def server(vllm: ModuleType, tiny_model: Path) -> Iterator[Any]:
    server = vllm.serve(tiny_model)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def handed_over(
    tiny_model: Path, toy_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, Tensor]]:
    """The trainer's weights, merged by PEFT itself, at each time that they are handed over."""
    states: list[dict[str, Tensor]] = []
    real = VLLMGeneration.sync_weights

    def sync(self: VLLMGeneration) -> None:
        model = self.model
        if hasattr(model, "peft_config"):
            like = SearchR3(tiny_model, dtype="float32")
            add_adapter(like, toy_recipe("model.lora={r: 4}"))
            own = {name: weight for name, weight in model.state_dict().items() if ".ref" not in name}
            like.model.load_state_dict(own)  # without trl's copy of the adapter, GRPO's reference
            model = like.model.merge_and_unload()
        states.append({name: weight.clone() for name, weight in model.state_dict().items()})
        real(self)

    monkeypatch.setattr(VLLMGeneration, "sync_weights", sync)
    return states


@pytest.mark.parametrize(
    ("mode", "overrides"),
    [
        ("server", ("stage2.direct_rollout=true", "stage2.sampling_temperature=0.7")),
        ("server", ("model.lora={r: 4}", "stage2.learning_rate=0.02", "stage2.beta=0.1")),
        ("colocate", ("model.lora={r: 4}", "stage2.learning_rate=0.02", "stage2.updates=2")),
    ],
    ids=["server", "server-lora", "colocate-lora"],
)
def test_vllm_generates_by_the_weights_that_are_trained(
    mode: str,
    overrides: tuple[str, ...],
    vllm: ModuleType,
    server: Any,
    handed_over: list[dict[str, Tensor]],
    tiny_model: Path,
    toy: RetrievalDataset,
    toy_recipe: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vllm.install(monkeypatch, server)
    recipe = toy_recipe(
        f"stage2.generation={{engine: vllm, mode: {mode}, port: {server.server_port}, timeout: 5}}",
        *("stage2.steps=4", "stage2.evaluate_every=4", "stage2.warmup_share=0", *overrides),
    )
    search = SearchR3(tiny_model, dtype="float32")
    chat, stage = search.conversation, recipe.stage2

    rows = train_stage2(search, toy, recipe, tmp_path / "run")

    engine = server.engine if mode == "server" else vllm.LLM.made[0].engine
    # it had the trainer's weights, all of them, whenever it generated
    generations = stage.steps // stage.updates
    assert len(engine.states) == len(handed_over) == generations
    for theirs, ours in zip(engine.states, handed_over, strict=True):
        assert theirs.keys() == ours.keys()
        for name, weight in ours.items():
            torch.testing.assert_close(theirs[name], weight, atol=1e-6, rtol=1e-5, msg=name)
    assert any(not torch.equal(engine.states[0][name], engine.states[-1][name]) for name in engine.states[0])
    # so its probabilities are the trainer's
    trained = [row for row in rows if "loss" in row]
    assert len(trained) == 4
    generated = trained[:: stage.updates]
    assert all(row["sampling/sampling_logp_difference/max"] < 2e-3 for row in generated)
    assert all(
        row["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=0.01) for row in generated
    )
    # it was asked as the recipe says, by token ids
    assert len(engine.asked) == generations * stage.queries * stage.rollouts
    prompts = {tuple(ids) for ids in chat.reasoning_prompts([query.text for query in toy.queries.values()])}
    for asked in engine.asked:
        assert tuple(asked["prompt"]) in prompts
        assert asked["stop_token_ids"] == chat.stop_ids
        assert asked["ignore_eos"]
        assert asked["temperature"] == stage.sampling_temperature
        assert asked["max_tokens"] == recipe.model.max_new_tokens
        assert (asked["top_k"], asked["top_p"], asked["repetition_penalty"]) == (0, 1.0, 1.0)
    # and the embed token came back as what it is
    said = 2 / 3 if stage.direct_rollout else 1 / 2  # every other one, and the last is not sampled
    assert all(row["emission_rate"] == pytest.approx(said, abs=0.15) for row in generated)
    assert all(row["thinking_tokens"] <= recipe.model.max_new_tokens for row in generated)


@pytest.mark.parametrize("lora", ["null", pytest.param("{r: 4}", marks=pytest.mark.slow)])
def test_two_processes_share_a_server(
    lora: str,
    tiny_model: Path,
    toy: RetrievalDataset,
    toy_recipe: MakeRecipe,
    tmp_path: Path,
    launch: Callable[..., None],
) -> None:
    """The first hands the weights over and asks for all; each gets what belongs to its own prompts."""
    recipe = toy_recipe(
        *("stage2.generation={engine: vllm, mode: server, timeout: 5}", f"model.lora={lora}"),
        *("stage2.steps=3", "stage2.queries=4", "stage2.evaluate_every=3", "stage2.warmup_share=0"),
    )
    toy.save(tmp_path / "data")
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.dump()), encoding="utf-8")
    start = SearchR3.from_base(recipe.model.base, max_length=96, dtype="float32")
    start.save_pretrained(tmp_path / "start")

    launch(2, Path(__file__).with_name("vllm_processes.py"), tmp_path)

    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["synchronised"] == 3 and second["synchronised"] == 0 and second["said"] == []
    had = load_file(tmp_path / "first.safetensors")
    for name, weight in start.model.state_dict().items():
        torch.testing.assert_close(had[name], weight, atol=1e-6, rtol=1e-5, msg=name)
    rollouts = recipe.stage2.steps * recipe.stage2.queries * recipe.stage2.rollouts
    assert len(first["got"]) == len(second["got"]) == rollouts // 2
    assert sorted(first["got"] + second["got"]) == sorted(first["said"])
    prompts = [{tuple(prompt) for prompt, _ in one["got"]} for one in (first, second)]
    assert prompts[0] != prompts[1]
    for row in (row for row in first["curve"] if "loss" in row):  # over both: none has another's
        assert row["sampling/sampling_logp_difference/max"] < 2e-3


def test_stops_and_limits_are_those_of_the_conversation() -> None:
    settings = GenerationRecipe(engine="vllm", gpu_memory=0.5, tensor_parallel=2, sleep=True, correct=False)
    told = engine_arguments(settings, [7, 9], length=100)
    assert told["generation_kwargs"] == {"stop_token_ids": [7, 9], "ignore_eos": True}
    assert told["vllm_max_model_length"] > 100
    assert told["vllm_gpu_memory_utilization"] == 0.5
    assert told["vllm_tensor_parallel_size"] == 2
    assert told["vllm_enable_sleep_mode"]
    assert not told["vllm_importance_sampling_correction"]
    assert engine_arguments(GenerationRecipe(), [7], 100) == {}


def test_what_is_not_installed_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed(GenerationRecipe())
    monkeypatch.setattr(rollout_engine, "find_spec", lambda name: None)
    with pytest.raises(SearchR3Error, match=r"vllm is not installed; install it with `pip install"):
        check_installed(GenerationRecipe(engine="vllm"))
    monkeypatch.setattr(rollout_engine, "find_spec", lambda name: object())
    monkeypatch.setattr(rollout_engine, "_has_gpu", lambda: False)
    with pytest.raises(SearchR3Error, match="there is none here"):
        check_installed(GenerationRecipe(engine="vllm"))


def test_a_server_that_is_not_there_or_takes_no_weights_is_told_in_one_line(server: Any) -> None:
    there = GenerationRecipe(engine="vllm", mode="server", port=server.server_port, timeout=1)
    check_server(there)
    server.settings = {**server.settings, "weight_transfer_config": None}
    with pytest.raises(SearchR3Error, match="takes no new weights") as found:
        check_server(there)
    assert "\n" not in str(found.value)
    server.settings = None
    with pytest.raises(SearchR3Error, match="VLLM_SERVER_DEV_MODE=1"):
        check_server(there)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = GenerationRecipe(engine="vllm", mode="server", port=free.getsockname()[1], timeout=1)
        with pytest.raises(SearchR3Error, match="does not answer within 1 seconds"):
            check_server(nobody)
    check_server(GenerationRecipe(engine="vllm", mode="colocate", port=1))
