"""Trains stage 1 as one process of those that the environment tells of; writes weights and curve.

python parallel.py FOLDER SIZE
"""

import json
import os
import sys
from pathlib import Path

from safetensors.torch import save_file

from searchr3.dataset import load_dataset
from searchr3.model import SearchR3
from searchr3.training.recipe_file import load_recipe
from searchr3.training.stage1 import train_stage1


def main() -> None:
    folder, size = Path(sys.argv[1]), sys.argv[2]
    rank = os.environ.get("RANK", "0")
    recipe = load_recipe(json.loads((folder / "recipe.json").read_text(encoding="utf-8")))
    search = SearchR3.from_base(recipe.model.base, max_length=recipe.model.max_length, dtype="float32")
    others = [load_dataset(one) for one in sorted(folder.glob("other-*"))]
    data = load_dataset(folder / "data")
    curve = train_stage1(search, data, recipe, folder / f"run-{size}", others=others)
    weights = {name: weight.clone() for name, weight in search.model.state_dict().items()}
    save_file(weights, folder / f"{size}-{rank}.safetensors")
    (folder / f"{size}-{rank}.json").write_text(json.dumps(curve), encoding="utf-8")


if __name__ == "__main__":
    main()
