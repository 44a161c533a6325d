"""For every test: no network, no forked tokenizer threads; and models small enough to run in milliseconds."""

import gc
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from runpy import run_path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from searchr3.dataset import RetrievalDataset
    from searchr3.model import SearchR3
    from searchr3.training.recipe import Recipe

# Before any library reads them. A test that reaches for the Hub fails at once instead of hanging.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # quicker for tiny models, and the same sums on every run

settings.register_profile("patient", deadline=None)  # a busy machine is no failure
settings.load_profile("patient")


def pytest_collection_finish() -> None:
    """Set aside what was imported: looking through all of it takes half a second, after every model."""
    gc.collect()
    gc.freeze()


TEXTS = [
    f"def {verb}_{thing}({thing}, {way}=None):\n"
    f"    {verb.capitalize()} the {thing} {way} and return {number} of them."
    for number, verb in enumerate(["parse", "sort", "merge", "split", "count", "load"])
    for thing, way in [
        ("date", "strictly"),
        ("string", "lazily"),
        ("list", "in place"),
        ("file", "line by line"),
    ]
]
PROMPT_WORDS = ["system user assistant", "Think of key terms, then represent the text. The embedding is"] * 2
QWEN2_TEMPLATE = (  # as Qwen2.5's: a system turn of its own when there is none
    "{%- if messages[0].role != 'system' %}"
    "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


class Rank:
    """One rank of a group whose ranks are threads: what processes do together, within one."""

    def __init__(self, rank, size, meeting, table):
        self.rank, self.size, self._meeting, self._table = rank, size, meeting, table

    def gather(self, array):
        self._table[self.rank] = array.copy()
        self._meeting.wait()
        found = list(self._table)
        self._meeting.wait()  # nobody writes before all have read
        return found


@pytest.fixture(scope="session")
def on_ranks():
    """`on_ranks(size, work)` is what `work(group)` returns on each rank; an error of one is raised."""

    def together(size, work):
        meeting, table = threading.Barrier(size, timeout=60), [None] * size

        def run(rank):
            try:
                return work(Rank(rank, size, meeting, table))
            except BaseException:
                meeting.abort()
                raise

        with ThreadPoolExecutor(size) as pool:
            running = [pool.submit(run, rank) for rank in range(size)]
        errors = [error for one in running if (error := one.exception())]
        own = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
        if errors:
            raise (own or errors)[0]
        return [one.result() for one in running]

    return together


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test finds, or leaves, anything in the cache of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEARCHR3_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an untrained chat model with the tiny base's architecture and tokenizer, but width 32.

    Its weights are wider than at a usual start, so that a vector depends strongly on the whole text.
    """
    import torch
    from transformers import Qwen3ForCausalLM

    from searchr3.training.base_model import make_tokenizer, tiny_config

    tokenizer = make_tokenizer(TEXTS + PROMPT_WORDS, vocabulary=584)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = tiny_config(tokenizer, vocabulary=600, num_key_value_heads=1, head_dim=16, **shape)
    config.initializer_range = 0.15
    folder = tmp_path_factory.mktemp("models") / "tiny-base"
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_base: Path) -> Path:
    """Folder of `tiny_base` with the embed token, as training leaves it: `SearchR3(tiny_model)` loads it."""
    from searchr3.model import SearchR3

    folder = tiny_base.with_name("tiny-model")
    SearchR3.from_base(tiny_base, max_length=96).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def qwen2_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an untrained model built like Qwen2.5-Instruct: tokenizer class, chat template, spare rows.

    Its generation config has a repetition penalty, and `<tool_call>` is an ordinary added token, as there.
    """
    import torch
    from tokenizers import AddedToken
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

    tokenizer = Qwen2Tokenizer().train_new_from_iterator(TEXTS + PROMPT_WORDS, 500, show_progress=False)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>"})
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False)])
    tokenizer.chat_template = QWEN2_TEMPLATE
    config = Qwen2Config(
        vocab_size=len(tokenizer) + 20,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        initializer_range=0.15,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config)
    model.generation_config.update(
        do_sample=True, temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.3
    )
    folder = tmp_path_factory.mktemp("models") / "qwen2-base"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def qwen2_model(qwen2_base: Path) -> Path:
    """Folder of `qwen2_base` with the embed token in one of its spare rows."""
    from searchr3.model import SearchR3

    folder = qwen2_base.with_name("qwen2-model")
    SearchR3.from_base(qwen2_base, max_length=128).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["tiny_model", "qwen2_model"])
def search(request: pytest.FixtureRequest) -> "SearchR3":
    """Each of the two models, loaded."""
    from searchr3.model import SearchR3

    return SearchR3(request.getfixturevalue(request.param))


@pytest.fixture(scope="session")
def toy() -> "RetrievalDataset":
    """150 documents, each of three words that its one query holds too, and stage-1 queries as a trace."""
    from searchr3.dataset import Document, Query, RetrievalDataset

    verbs = ["parse", "sort", "merge", "split", "count", "load"]
    things = ["date", "string", "list", "file", "number"]
    ways = ["strictly", "lazily", "place", "line", "return"]
    splits = ["stage1", "stage1", "stage1", "stage2", "stage2", "dev", "test"]
    corpus, queries, qrels = {}, {}, {split: {} for split in splits}
    for number, words in enumerate(product(verbs, things, ways)):
        verb, thing, way = words
        split = splits[number * 5 % 7]
        corpus[f"d{number}"] = Document(f"{verb}_{thing}", f"def {verb}_{thing}({way}): {way} {thing} {verb}")
        trace = f"{way} {thing} {verb}" if split == "stage1" else None
        queries[f"q{number}"] = Query(f"{verb} the {thing} {way}", trace)
        qrels[split][f"q{number}"] = {f"d{number}": 1}
    return RetrievalDataset("toy", corpus, queries, qrels)


@pytest.fixture
def toy_recipe(tiny_base: Path) -> "Callable[..., Recipe]":
    """Makes a recipe of seconds for `tiny_base` on `toy`, in float32; overrides as on the command line."""
    from searchr3.training.recipe_file import load_recipe

    stage1 = {"steps": 4, "batch_size": 8, "learning_rate": 0.003, "evaluate_every": 2, "chat_prompts": 2}
    stage2 = {"steps": 2, "queries": 2, "rollouts": 4, "learning_rate": 0.001, "evaluate_every": 2}
    thoughts = {"own_samples_after": 0, "noisy_traces": 0.3, "own_samples": 0.4}
    term = {"contrastive_pairs": 0, "contrastive_negatives": 1}
    values = {
        "name": "toy",
        "data": {"dev_queries": 10, "dev_documents": 40, "trace_words": 3},
        "model": {"base": str(tiny_base), "max_length": 96, "max_new_tokens": 4, "precision": "fp32"},
        "stage1": {**stage1, "log_every": 1, **thoughts},
        "stage2": {**stage2, "log_every": 1, "episodes_every": 1, "environment": {"budget": 0.1}, **term},
    }
    return lambda *overrides: load_recipe(values, overrides)


@pytest.fixture
def chat_server() -> Iterator[Any]:
    """A running `ChatServer`, see `chat_server.py`."""
    server = run_path(str(Path(__file__).with_name("chat_server.py")))["ChatServer"]()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def fake_vllm(chat_server: Any) -> Callable[["SearchR3"], Any]:
    """Makes `chat_server` a fake of vLLM that serves a model, see `fake_vllm.py`."""

    def serve(search: "SearchR3") -> Any:
        chat_server.script = run_path(str(Path(__file__).with_name("fake_vllm.py")))["FakeVLLM"](search)
        return chat_server.script

    return serve


@pytest.fixture(scope="session")
def launch() -> Callable[..., None]:
    """`launch(size, *command)` runs Python with these arguments in so many processes of one run."""

    def together(size: int, *command: object, **environment: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        places = [
            {**meeting, "WORLD_SIZE": str(size), "RANK": str(rank), "LOCAL_RANK": str(rank)}
            for rank in range(size)
        ]
        running = [
            subprocess.Popen(
                [sys.executable, *map(str, command)],
                env={**os.environ, **environment, **(place if size > 1 else {})},
            )
            for place in places
        ]
        try:
            assert [process.wait(280) for process in running] == [0] * size
        finally:
            for process in running:
                process.kill()

    return together
