"""What the processes of tests/environment/test_processes.py do; alone it makes what they are compared with.

python worker.py RANK SIZE FOLDER MODEL
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np

from searchr3.embedding import backbone
from searchr3.environment import Certified, Neighbourhood, VectorStore, audit
from searchr3.group import bounds, current_group
from searchr3.model import SearchR3
from searchr3.sharing import encode_shared

ROWS = 203  # not divisible by 2 or 3


def world():
    spec = importlib.util.spec_from_file_location("world", Path(__file__).with_name("conftest.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules["world"] = module
    spec.loader.exec_module(module)
    return module.World(size=ROWS)


def part(group, values):
    """This rank's share of what the single process has whole."""
    start, end = bounds(len(values), group.size)[group.rank : group.rank + 2]
    return values[start:end]


def work(group, folder, model):
    """Own results, which the ranks have in parts, and common ones, which each has whole."""
    own, common = {}, {}
    corpus = world()
    environment = corpus.environment(Neighbourhood(k=4, budget=0.1), known=False, candidates=20, group=group)
    for corpus.step in (0, 1, 2, 3):
        vectors, relevant = corpus.rollouts(corpus.step, queries=5, group=3)
        noise = np.random.default_rng(corpus.step).standard_normal(vectors.shape)
        vectors, relevant = part(group, vectors + 0.3 * noise), part(group, relevant)
        report = environment.refresh(vectors, relevant, corpus.step)
        scores = environment.score(vectors, relevant)
        common[f"refreshed {corpus.step}"] = report.rows
        common[f"drift {corpus.step}"] = np.array([report.drift or 0, report.mean_age])
        for name in ("reward", "rank", "hits", "candidates", "scores", "grades"):
            own[f"{name} {corpus.step}"] = getattr(scores, name)
        if corpus.step == 1:
            environment.save(folder / "environment")
    common["encoded"] = np.array(corpus.encoded)

    policy = Certified(candidates=20, max_budget=60, calibration=0.3)
    certain = corpus.environment(policy, known=False, candidates=20, group=group)
    for corpus.step in (0, 1, 2):
        vectors, relevant = corpus.rollouts(corpus.step, queries=5, group=3)
        vectors, relevant = part(group, vectors), part(group, relevant)
        common[f"certified {corpus.step}"] = certain.refresh(vectors, relevant, corpus.step).rows
        common[f"corrected {corpus.step}"] = certain.store.take(np.arange(ROWS))
        own[f"certified reward {corpus.step}"] = certain.score(vectors, relevant).reward
        found = audit(certain, vectors, relevant, corpus.step, group=1, sample=20)
        common[f"audit {corpus.step}"] = np.array([found.drift, found.documents])
    common["bound"] = np.array([policy.certificate.bound])

    store = environment.store
    queries = corpus.rollouts(9)[0][:7]
    for name, some in (
        ("some", part(group, queries)),
        ("one", queries[:1] if group.rank == 0 else queries[:0]),
    ):
        scores, rows = store.top_k(some, 30)
        own |= {f"{name} scores": scores, f"{name} rows": rows}
        own[f"{name} ahead"] = store.ahead(some, rows[:, 7], scores[:, 7])
    store.transform(lambda rows, vectors: vectors[:, ::-1], skip=np.arange(50, 150))
    common |= {"taken": store.take(np.array([202, 0, 101, 0])), "whole": store.state_dict()["vectors"]}

    again = corpus.environment(Neighbourhood(k=4, budget=0.1), known=False, candidates=20, group=group)
    again.load(folder.parent / "1" / "environment")
    own["reloaded"] = again.score(vectors, relevant).reward
    loaded = VectorStore.from_state(again.store.state_dict(), dtype="float16", mapped=True, group=group)
    loaded.save(folder / "half")
    common["half"] = loaded.top_k(queries, 10)[1]

    search = SearchR3(model, batch_size=2)
    forwards = []
    backbone(search.model).layers[0].register_forward_hook(lambda *_: forwards.append(1))
    for texts in (1, 2, 9):
        rendered = search.conversation.documents(["parse the date " * (i % 4) for i in range(texts)])
        common[f"embedded {texts}"] = encode_shared(search, rendered, group)
        common[f"forwards {texts}"] = np.array(len(forwards))
        forwards.clear()
    return own, common


def main():
    import torch.distributed as dist

    rank, size, folder, model = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    assert current_group() is current_group()
    own, common = work(current_group(), folder, model)
    np.savez(folder / f"{rank}.npz", **own, **common)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
