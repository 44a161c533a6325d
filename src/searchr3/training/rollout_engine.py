"""Who generates the rollouts: transformers in the trainer's own passes, or vLLM, in it or beside it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Annotated, Any, Literal

from pydantic import Field

from searchr3.errors import SearchR3Error
from searchr3.training.section import Count, Positive, Section

_PAUSE = 2.0  # seconds between two looks at a server that is not there yet


class GenerationRecipe(Section):
    engine: Literal["transformers", "vllm"] = Field(
        "transformers",
        description="who generates the rollouts; `vllm` needs a GPU and `pip install 'searchr3[vllm]'`",
    )
    mode: Literal["colocate", "server"] = Field(
        "colocate",
        description="`vllm`: `colocate` runs it inside the training processes, on their GPUs; `server` asks "
        "a `vllm serve` that was started beside, on GPUs of its own",
    )
    host: str = Field("127.0.0.1", description="`server`: where it listens")
    port: Annotated[int, Field(ge=1, le=65535)] = Field(8000, description="`server`: its port")
    group_port: Annotated[int, Field(ge=1, le=65535)] = Field(
        51216,
        description="`server`: a free port of the trainer's machine, over which weights are handed over",
    )
    timeout: Positive = Field(240, description="`server`: seconds to wait for it")
    gpu_memory: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.3,
        description="`colocate`: share of each GPU's memory that vLLM takes, for weights, keys and values",
    )
    tensor_parallel: Count = Field(
        1,
        description="`colocate`: GPUs that one copy of the model is divided among; it divides the processes",
    )
    sleep: bool = Field(
        False, description="`colocate`: vLLM gives its memory back while the model is trained"
    )
    correct: bool = Field(
        True,
        description="`vllm`: weigh rollouts by what the trainer's own probabilities say of them, which costs "
        "one forward more; vLLM computes with other kernels and precision",
    )

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def colocated(self) -> bool:
        return self.engine == "vllm" and self.mode == "colocate"

    @property
    def served(self) -> bool:
        return self.engine == "vllm" and self.mode == "server"


def check_installed(settings: GenerationRecipe) -> None:
    """Look whether the engine is there, before anything is trained.

    Raises:
        SearchR3Error: vLLM, or the GPU that it needs, is not.
    """
    if settings.engine != "vllm":
        return
    if find_spec("vllm") is None:
        raise SearchR3Error(
            "stage2.generation.engine: vllm is not installed; install it with "
            "`pip install 'searchr3[vllm]'`, or set the key to transformers"
        )
    if not _has_gpu():
        raise SearchR3Error(
            "stage2.generation.engine: vllm is handed the weights from GPU to GPU, and there is none here; "
            "set the key to transformers"
        )


def check_server(settings: GenerationRecipe) -> None:
    """Wait for the vLLM server, and look whether it can take new weights.

    Raises:
        SearchR3Error: it does not answer in time, or was started without what is needed.
    """
    if not settings.served:
        return
    import httpx2

    give_up = time.monotonic() + settings.timeout
    place = f"stage2.generation: the vLLM server at {settings.url}"
    start = "start it with `VLLM_SERVER_DEV_MODE=1 vllm serve RUN/base --weight-transfer-config "
    start += """'{"backend": "nccl"}' --logprobs-mode processed_logprobs`"""
    while not answers(settings):
        if time.monotonic() + _PAUSE > give_up:
            raise SearchR3Error(f"{place} does not answer within {settings.timeout:g} seconds; {start}")
        time.sleep(_PAUSE)
    try:
        answer = httpx2.get(f"{settings.url}/server_info", params={"config_format": "json"}, timeout=60)
        config = answer.json()["vllm_config"] if answer.status_code == 200 else None
    except (httpx2.HTTPError, ValueError, KeyError):
        config = None
    if config is None:
        raise SearchR3Error(f"{place} does not tell its settings (VLLM_SERVER_DEV_MODE=1); {start}")
    if config.get("weight_transfer_config") is None:
        raise SearchR3Error(f"{place} takes no new weights (--weight-transfer-config); {start}")


def answers(settings: GenerationRecipe, seconds: float = 10) -> bool:
    """Whether the vLLM server is there and well; it has so many seconds to say so."""
    import httpx2

    try:
        return httpx2.get(f"{settings.url}/health", timeout=seconds).status_code == 200
    except httpx2.HTTPError:
        return False


def server_state(settings: GenerationRecipe) -> str:
    """A line on whether the vLLM server is there now; it need not be before stage 2, which waits for it.

    Raises:
        SearchR3Error: it is, and was started without what is needed.
    """
    if answers(settings, 2):
        check_server(settings)
        return f"the vLLM server at {settings.url} answers, and takes new weights"
    return (
        f"no vLLM server answers at {settings.url} now; when stage 2 begins it is waited for, "
        f"{settings.timeout:g} seconds"
    )


def engine_arguments(settings: GenerationRecipe, stop_ids: Sequence[int], length: int) -> dict[str, Any]:
    """What `trl.GRPOConfig` is told of the engine.

    vLLM gets and gives token ids, so nothing is lost on the way through text. It stops where transformers
    does, at `stop_ids` and at nothing else: its own end of text is turned off. Temperature, top-k, top-p and
    penalties come from the config's other keys, whatever the checkpoint's generation config says.

    Args:
        length: most tokens of prompt and completion.
    """
    if settings.engine != "vllm":
        return {}
    return {
        "use_vllm": True,
        "vllm_mode": settings.mode,
        "vllm_server_host": settings.host,
        "vllm_server_port": settings.port,
        "vllm_server_timeout": settings.timeout,
        "vllm_group_port": settings.group_port,
        "vllm_gpu_memory_utilization": settings.gpu_memory,
        "vllm_tensor_parallel_size": settings.tensor_parallel,
        "vllm_enable_sleep_mode": settings.sleep,
        "vllm_max_model_length": length + 1,  # the token that fills it ends a completion
        "vllm_importance_sampling_correction": settings.correct,
        "generation_kwargs": {"stop_token_ids": list(stop_ids), "ignore_eos": True},
    }


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
