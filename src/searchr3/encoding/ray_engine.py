"""Encoding by many workers, with Ray Data: each takes a shard, encodes it, and writes its file itself.

Only the places of shards travel through Ray, no text and no vector. A worker that dies is started again, and
the shard that it had is encoded again; what it had finished lies on the disk.

The cluster is one of this machine's own, reached only from it, and ends with the command. `RAY_ADDRESS` names
another; then model, input and output must be paths that mean the same files on all its machines.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from searchr3.encoding.manifest import Shard
from searchr3.encoding.shard_files import attempted
from searchr3.encoding.worker import Encoder, Tell, Work
from searchr3.errors import SearchR3Error, first_line

ATTEMPTS = 5
"""How many workers may die over one shard; over different shards any number may. Ray Data sets no limit."""
_CORES = 4  # of a worker without a GPU, where nobody says how many workers there shall be
_STORE = 256 * 2**20  # bytes of Ray's store of objects, which holds hardly anything


@dataclass(frozen=True)
class RayEngine:
    """Encodes shards with Ray Data.

    Attributes:
        workers: how many, each with the model in its memory; by default one for each GPU, or, where there is
            none, for every four cores.
        gpus_per_worker: GPUs that each has to itself; a part of one is shared. By default 1 where there are
            any.

    Raises:
        SearchR3Error: Ray is not installed.
    """

    workers: int | None = None
    gpus_per_worker: float | None = None

    def __post_init__(self) -> None:
        _ray()  # that it is not installed is told before the work

    def __call__(self, work: Work, shards: list[Shard], tell: Tell) -> None:
        """Encode the shards, in any order; see `searchr3.encoding.job.Engine`."""
        ray, data = _ray()
        with _cluster(ray), _ray_errors(ray):
            share = self._share(ray.nodes(), len(shards))
            device = "cuda" if share.gpus else "cpu"
            _encode(data, replace(work, device=device), shards, tell, share)

    def _share(self, nodes: list[dict[str, Any]], shards: int) -> Share:
        """How many workers there are, and what each gets of the machines of the cluster.

        Raises:
            SearchR3Error: the workers would never all find a place; Ray would wait for it.
        """
        there = [node["Resources"] for node in nodes if node["Alive"]]
        all_cores = int(sum(one.get("CPU", 0) for one in there))
        all_gpus = sum(one.get("GPU", 0) for one in there)
        gpus = float(all_gpus > 0) if self.gpus_per_worker is None else self.gpus_per_worker
        likely = int(all_gpus / gpus) if gpus else all_cores // _CORES
        workers = min(self.workers or max(1, likely), shards)
        if workers * gpus > all_gpus:
            raise SearchR3Error(
                f"--workers {workers} with --gpus-per-worker {gpus:g}: there are {all_gpus:g} GPUs; "
                "set one of them lower"
            )
        if workers > all_cores:
            raise SearchR3Error(f"--workers {workers}: the cluster has {all_cores} cores; set it lower")
        largest = int(max(one.get("CPU", 0) for one in there))
        return Share(workers, 1 if gpus else max(1, min(all_cores // workers, largest)), gpus)


class Share(NamedTuple):
    """How many workers there are, and what each has to itself; cores are threads too."""

    workers: int
    cores: int
    gpus: float


def _encode(data: Any, work: Work, shards: list[Shard], tell: Tell, share: Share) -> None:
    _hush(data)
    places = [{"shard": shard.model_dump_json()} for shard in shards]
    results = data.from_items(places, override_num_blocks=len(places)).map(
        Worker,
        fn_constructor_args=(work,),
        # one task at a time: a shard that waits for a busy worker could go to one that is free
        compute=data.ActorPoolStrategy(size=share.workers, max_tasks_in_flight_per_actor=1),
        num_cpus=share.cores,
        num_gpus=share.gpus,
    )
    done = 0
    for result in results.iter_rows():
        if result["error"]:
            raise SearchR3Error(result["error"])
        done += result["rows"]
        tell(done)


class Worker:
    """One worker of the pool. What goes wrong in it is told as text: Ray would wrap it many times over."""

    def __init__(self, work: Work):
        self.work = work
        self.encoder: Encoder | None = None

    def __call__(self, place: dict[str, Any]) -> dict[str, Any]:
        shard = Shard.model_validate_json(place["shard"])
        error = ""
        try:
            if attempted(self.work.folder, shard) == ATTEMPTS:
                raise SearchR3Error(
                    f"{shard.file}: {ATTEMPTS} workers died over it, perhaps of memory; try fewer --workers "
                    "or a smaller --batch-size; finished shards stay"
                )
            if self.encoder is None:
                self.encoder = Encoder(self.work)
            self.encoder.encode(shard)
        except SearchR3Error as fault:
            error = str(fault)
        except Exception as fault:
            logging.getLogger(__name__).error("%s", traceback.format_exc())
            error = f"{shard.file}: {type(fault).__name__} in a worker: {fault}"
        return {"rows": shard.rows, "error": error}


@contextlib.contextmanager
def _cluster(ray: Any) -> Iterator[None]:
    """The cluster at `RAY_ADDRESS`, or one of this machine's own, for as long as it is needed."""
    own = {"address": "local", "object_store_memory": _STORE, "include_dashboard": False}
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _knock(address)
    try:
        try:
            with _silence():
                ray.init(logging_level=logging.ERROR, log_to_driver=False, **({} if address else own))
        except Exception as error:  # a bare one, where the machine is too busy to start it
            fault = f"no cluster answers at {address}" if address else "no cluster can be started"
            raise SearchR3Error(
                f"Ray: {fault} ({first_line(error)}); try again, or --engine local"
            ) from error
        with contextlib.redirect_stdout(sys.stderr):  # where Ray tells of workers that died
            yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise SearchR3Error where nothing listens at an address: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # `auto`, `local`
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise SearchR3Error(
            f"RAY_ADDRESS {address}: no cluster answers ({error.strerror or error}); mend it, or unset it"
        ) from None


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Where Ray is told to be silent, it says on the screen that it was told so."""
    if os.environ.get("RAY_BACKEND_LOG_LEVEL") != "fatal":
        yield
        return
    screen = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(screen, 2)
        os.close(screen)


@contextlib.contextmanager
def _ray_errors(ray: Any) -> Iterator[None]:
    try:
        yield
    except ray.exceptions.RayError as error:
        raise SearchR3Error(
            f"Ray failed ({first_line(error)}); finished shards stay, the same command goes on"
        ) from error


def _hush(data: Any) -> None:
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _ray() -> tuple[Any, Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports its use otherwise
    if not os.environ.get("RAY_ADDRESS"):
        # Ray listens on the loopback alone where it expects no cluster. Its token, which keeps other users of
        # the machine out, would else be written to the home folder.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray
        import ray.data
    except ImportError:
        raise SearchR3Error(
            "--engine ray needs Ray, which is not installed: pip install 'searchr3[ray]'"
        ) from None
    return ray, ray.data
