"""Trains stage 2 as one of several processes that ask one server, a stand-in for vLLM's, for their rollouts.

python vllm_processes.py FOLDER

The recipe is FOLDER/recipe.json, the data FOLDER/data. The server lives in the first process, for weights go
to it through memory; the others never speak to it. FOLDER/RANK.json gets what the process asked and got, and
of the first what the server generated and took.
"""

import json
import os
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from searchr3.dataset import load_dataset
from searchr3.model import SearchR3
from searchr3.training.recipe_file import load_recipe
from searchr3.training.stage2 import Stage2Trainer, train_stage2


def noted(owner, method: str, calls: list) -> None:
    """Keeps prompt and result of each call of a method."""
    real = getattr(owner, method)

    def call(self, prompt, *arguments, **named):
        result = real(self, prompt, *arguments, **named)
        calls.append((prompt, result[0]))
        return result

    setattr(owner, method, call)


def main() -> None:
    import vllm_stand_in  # beside this file, where only a script looks

    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    values = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    search = SearchR3.from_base(values["model"]["base"], max_length=96, dtype="float32")
    server = vllm_stand_in.serve(folder / "start") if rank == "0" else None
    said, got = [], []
    noted(vllm_stand_in.Engine, "complete", said)
    noted(Stage2Trainer, "_generate_single_turn", got)
    environment = dict(os.environ)
    vllm_stand_in.install(pytest.MonkeyPatch(), server)
    os.environ.update(environment)  # of which it takes out what makes this one of several
    port = server.server_port if server else 1
    recipe = load_recipe(values, [f"stage2.generation.port={port}"])

    curve = train_stage2(search, load_dataset(folder / "data"), recipe, folder / "run")

    told = {
        "got": [pair for prompts, said in got for pair in zip(prompts, said, strict=True)],
        "said": said,
        "synchronised": server.posted.count("/finish_weight_update") if server else 0,
        "curve": curve,
    }
    (folder / f"{rank}.json").write_text(json.dumps(told), encoding="utf-8")
    if server:
        save_file(server.engine.states[0], folder / "first.safetensors")


if __name__ == "__main__":
    main()
