"""Trains a stage as one process of those that the environment tells of; writes model, curve and passes.

python parallel.py FOLDER NAME [STAGE] [STOP]

The recipe is FOLDER/recipe.json, the data FOLDER/data, the run FOLDER/run-NAME. With STOP the training is
interrupted at that step. The rollouts of stage 2 are not sampled but worked out from query and step, so that
they are the same in any number of processes, unless SAMPLED is set. Where `accelerate launch` would have
asked for FSDP or DeepSpeed (ACCELERATE_USE_FSDP, …_DEEPSPEED), it is used; accelerate itself does so on
accelerators only.
"""

import json
import os
import random
import sys
from pathlib import Path

import torch.distributed as dist
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from safetensors.torch import save_file

from searchr3.dataset import load_dataset
from searchr3.embedding import backbone
from searchr3.model import SearchR3
from searchr3.training.checkpoints import StartCounts
from searchr3.training.recipe_file import load_recipe
from searchr3.training.stage1 import train_stage1
from searchr3.training.stage2 import Stage2Trainer, train_stage2

WORDS = ["date", "string", "list", "file", "number", "lazily", "strictly", "place", "line", "parse", "merge"]


def decided(trainer, prompts, images, fields, generations):
    """Thoughts of up to four words; of each group one never says the embed token."""
    chat, said = trainer.conversation, []
    for row, prompt in enumerate(prompts):
        draw = random.Random(f"{prompt} {row % generations} {trainer.state.global_step}")
        (thought,) = chat.thought_ids([" ".join(draw.choices(WORDS, k=draw.randint(1, 4)))])
        said.append([*thought, chat.embed_id] if row % generations else list(thought))
    return said, None


def deal_on_cpu() -> None:
    """Let accelerate take the settings of FSDP or DeepSpeed on a CPU, as it does on GPUs."""
    real = AcceleratorState.__init__
    kinds = {"fsdp_plugin": DistributedType.FSDP, "deepspeed_plugin": DistributedType.DEEPSPEED}

    def init(self, *arguments, **named) -> None:
        real(self, *arguments, **named)
        for name, kind in kinds.items():
            plugin = named.get(name)
            if self.distributed_type == DistributedType.MULTI_CPU and plugin:
                self.distributed_type = PartialState._shared_state["distributed_type"] = kind
                if name == "fsdp_plugin":
                    self.fsdp_plugin = plugin
                else:
                    self.deepspeed_plugins = {"default": plugin}

    AcceleratorState.__init__ = init


def stop_at_once() -> None:
    """Every rollout of this process ends with its first token, while others go on."""
    real = Stage2Trainer.__init__

    def init(self, *arguments) -> None:
        real(self, *arguments)
        anything = list(range(self.model.config.vocab_size))
        self.generation_config.eos_token_id = self.generation_kwargs["eos_token_id"] = anything

    Stage2Trainer.__init__ = init


def count_passes(search: SearchR3) -> list[int]:
    """Grows by one at each forward of the first layer, or of a copy of it."""
    passes = []
    backbone(search.model).layers[0].register_forward_hook(lambda *_: passes.append(1))
    return passes


def main() -> None:
    folder, name, *rest = sys.argv[1:]
    stage, stop = [*rest, *["stage1", ""][len(rest) :]]
    folder, rank = Path(folder), os.environ.get("RANK", "0")
    recipe = load_recipe(json.loads((folder / "recipe.json").read_text(encoding="utf-8")))
    if os.environ.get("ACCELERATE_USE_FSDP") or os.environ.get("ACCELERATE_USE_DEEPSPEED"):
        deal_on_cpu()
    search = SearchR3.from_base(recipe.model.base, max_length=recipe.model.max_length, dtype="float32")

    def tell(news: dict) -> None:
        if stop and news["step"] == int(stop):
            if dist.is_initialized():
                dist.barrier()
            os._exit(0)  # as one that is killed

    passes = count_passes(search)
    data, run = load_dataset(folder / "data"), folder / f"run-{name}"
    others = [load_dataset(one) for one in sorted(folder.glob("other-*"))]
    if stage == "stage1":
        curve = train_stage1(search, data, recipe, run, tell, others=others)
    else:
        if os.environ.get("SAMPLED") and rank == "1":
            stop_at_once()
        if not os.environ.get("SAMPLED"):
            Stage2Trainer._generate_single_turn = decided
            StartCounts.on_train_begin = lambda *_, **__: None  # which might be kept in both
        files = run / "episodes.jsonl", run / "alarms.json"
        curve = train_stage2(search, data, recipe, run, files[0], tell=tell, alarms=files[1])
    (folder / f"{name}-{rank}.passes").write_text(str(len(passes)), encoding="utf-8")
    if rank == "0":
        search.save_pretrained(folder / f"{name}-model", overwrite=True)
    model = search.model.merge_and_unload() if recipe.model.lora else search.model
    weights = {key: weight.clone() for key, weight in model.state_dict().items()}
    save_file(weights, folder / f"{name}-{rank}.safetensors")
    (folder / f"{name}-{rank}.json").write_text(json.dumps(curve), encoding="utf-8")


if __name__ == "__main__":
    main()
