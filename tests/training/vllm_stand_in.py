"""A stand-in for vLLM, which needs a GPU: a tiny model on the CPU behind the same calls and HTTP endpoints.

It samples, counts tokens and stops as vLLM does, refuses weights whose names it does not know, and starts
with weights that are wrong: only what the trainer hands over makes its probabilities those of the trainer.
The broadcast by NCCL is a queue; all else between `trl`'s client and the server is real HTTP.
"""

import json
import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import ClassVar
from urllib.parse import urlparse

import httpx2
import torch
from transformers import AutoModelForCausalLM

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Engine:
    """A model that generates.

    Attributes:
        asked: the sampling parameters and the prompt of each request for completions.
        states: the weights after each time that all were handed over.
        fresh: names handed over since.
    """

    def __init__(self, path):
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        with torch.no_grad():
            for weight in self.model.parameters():
                weight.mul_(0.3).add_(0.1)
        self.asked, self.states, self.fresh = [], [], set()
        self.lock = threading.Lock()

    @torch.no_grad()
    def load(self, name, tensor):
        own = dict(self.model.named_parameters())[name]  # KeyError: as vLLM
        assert own.shape == tensor.shape
        own.copy_(tensor)
        self.fresh.add(name)

    def loaded(self):
        assert self.fresh == {name for name, _ in self.model.named_parameters()}, "weights were left out"
        self.fresh = set()
        self.states.append({name: weight.clone() for name, weight in self.model.state_dict().items()})

    @torch.no_grad()
    def complete(self, prompt, params):
        """Token ids and their log-probabilities; every other one says the embed token after two others."""
        with self.lock:
            self.asked.append({**params, "prompt": list(prompt)})
            eos = self.model.generation_config.eos_token_id
            stops = {*params["stop_token_ids"], *([] if params["ignore_eos"] else [eos])}
            said, logprobs = [], []
            while len(said) < params["max_tokens"] and not stops & set(said[-1:]):
                logits = self.model(torch.tensor([[*prompt, *said]])).logits[0, -1].float()
                scores = torch.log_softmax(logits / params["temperature"], dim=-1)
                token = int(torch.multinomial(scores.exp(), 1))
                if len(said) == 2 and len(self.asked) % 2:
                    token = params["stop_token_ids"][0]
                said.append(token)
                logprobs.append(scores[token].item())
            return said, logprobs


class Server(ThreadingHTTPServer):
    """`vllm serve` with its development endpoints.

    Attributes:
        wire: the tensors on their way.
        settings: what `/server_info` tells; None for a server without development endpoints.
    """

    daemon_threads = True

    def __init__(self, engine):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.engine, self.wire, self.posted = engine, queue.Queue(), []
        self.settings = {
            "weight_transfer_config": {"backend": "nccl"},
            "model_config": {"logprobs_mode": "processed_logprobs"},
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        settings = self.server.settings
        self.answer(
            {
                "/health": {},
                "/v1/models": {"data": [{"id": "served"}]},
                "/server_info": settings and {"vllm_config": settings},
                "/get_world_size": {"world_size": 1},
            }[urlparse(self.path).path]
        )

    def do_POST(self):
        length = int(self.headers.get("content-length") or 0)
        body = json.loads(self.rfile.read(length) or "{}")
        server, path = self.server, urlparse(self.path).path
        server.posted.append(path)
        if path == "/v1/completions":
            assert body["model"] == "served"
            assert body["return_token_ids"]
            self.answer(
                {"choices": [self.choice(one, body) for one in body["prompt"] for _ in range(body["n"])]}
            )
        elif path == "/update_weights":
            info = body["update_info"]
            for name, dtype, shape in zip(info["names"], info["dtype_names"], info["shapes"], strict=True):
                tensor = server.wire.get(timeout=60)
                assert tensor.dtype == DTYPES[dtype]
                assert list(tensor.shape) == shape
                server.engine.load(name, tensor)
            self.answer({})
        elif path == "/finish_weight_update":
            server.engine.loaded()
            self.answer({})
        else:
            known = ("/init_weight_transfer_engine", "/start_weight_update", "/reset_prefix_cache")
            self.answer({"success": True} if path in known else None)

    def choice(self, prompt, body):
        ids, logprobs = self.server.engine.complete(prompt, body)
        names = [f"token_id:{token}" for token in ids]
        tops = [{name: value} for name, value in zip(names, logprobs, strict=True)]
        return {
            "prompt_token_ids": prompt,
            "token_ids": ids,
            "logprobs": {"tokens": names, "token_logprobs": logprobs, "top_logprobs": tops},
        }

    def answer(self, value):
        text = json.dumps(value).encode()
        self.send_response(404 if value is None else 200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


def serve(path):
    """A running server of the model at `path`."""
    server = Server(Engine(path))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server


class LLM:
    """vLLM inside the process, as `trl` makes and uses it."""

    made: ClassVar[list] = []

    def __init__(self, model, **settings):
        self.engine, self.settings = Engine(model), settings
        LLM.made.append(self)
        runner = SimpleNamespace(model=SimpleNamespace(load_weights=self.load_weights))
        worker = SimpleNamespace(model_runner=runner)
        self.llm_engine = SimpleNamespace(
            model_executor=SimpleNamespace(driver_worker=worker),
            model_config=SimpleNamespace(max_model_len=settings["max_model_len"]),
        )

    def load_weights(self, pairs):
        for name, tensor in pairs:
            self.engine.load(name, tensor)

    def reset_prefix_cache(self):
        self.engine.loaded()

    def generate(self, prompts, sampling_params, use_tqdm):
        outputs = []
        for prompt in prompts:
            ids, logprobs = self.engine.complete(prompt["prompt_token_ids"], sampling_params)
            ranked = [
                {token: SimpleNamespace(rank=1, logprob=value)}
                for token, value in zip(ids, logprobs, strict=True)
            ]
            said = SimpleNamespace(token_ids=ids, logprobs=ranked)
            outputs.append(SimpleNamespace(prompt_token_ids=prompt["prompt_token_ids"], outputs=[said]))
        return outputs


class Session:
    """Of `requests`, which comes with vLLM and is not here: what trl's client needs of it."""

    def mount(self, *_):
        pass

    def get(self, url, **named):
        return httpx2.get(url, timeout=60, **named)

    def post(self, url, **named):
        return httpx2.post(url, timeout=60, **named)


def install(monkeypatch, server=None):
    """Let trl and our own checks find this in the place of vLLM, for one test."""
    from trl.generation import vllm_client, vllm_generation

    from searchr3.training import rollout_engine

    def broadcast(iterator, group, src, post_iter_func):
        for item in iterator:
            server.wire.put(post_iter_func(item).clone())

    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # colocate sets them; what comes after this test must not see it
        monkeypatch.delenv(name)
    end = SimpleNamespace(group=SimpleNamespace(store=None, socket=None))
    fakes = SimpleNamespace(
        Session=Session,
        get=httpx2.get,
        exceptions=SimpleNamespace(RequestException=httpx2.HTTPError),
    )
    join = vllm_client.VLLMClient.init_communicator
    for module in (vllm_client, vllm_generation):
        monkeypatch.setattr(module, "is_vllm_available", lambda *_, **__: True)
    for name, value in {
        "is_requests_available": lambda: True,
        "requests": fakes,
        "HTTPAdapter": lambda **_: None,
        "Retry": lambda **_: None,
        "get_ip": lambda: "127.0.0.1",
        "_HAS_STATEFUL_TRAINER_ENGINE": True,
        "_HAS_RESET_PREFIX_CACHE_SUCCESS": True,
        "open_trainer_endpoint": lambda info: end,
        "packed_nccl_broadcast_producer": broadcast,
    }.items():
        monkeypatch.setattr(vllm_client, name, value, raising=False)
    # the one thing that trl refuses on a CPU
    monkeypatch.setattr(vllm_client.VLLMClient, "init_communicator", lambda self, device: join(self, "cuda"))
    LLM.made = []
    monkeypatch.setattr(vllm_generation, "LLM", LLM, raising=False)
    monkeypatch.setattr(vllm_generation, "SamplingParams", lambda **named: named, raising=False)
    monkeypatch.setattr(rollout_engine, "find_spec", lambda name: object())
    monkeypatch.setattr(rollout_engine, "_has_gpu", lambda: True)
