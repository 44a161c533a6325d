"""A finished folder onto the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from searchr3.errors import ModelError, first_line

_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".msgpack", ".h5"}
_TRAINER = (
    *("optimizer*", "scheduler*", "rng_state*", "scaler*", "training_args*", "trainer_state*"),
    *("checkpoint*", "episodes.jsonl*", "global_step*", ".env*"),
)
_SIGN_IN = "sign in with `hf auth login`, or set HF_TOKEN to a token that may write"


def check_push(repo: str) -> None:
    """Before the work: the name is one, and there is a token and a network to use.

    Raises:
        ModelError: one of them is not.
    """
    try:
        validate_repo_id(repo)
        if "/" not in repo:
            raise HFValidationError
    except HFValidationError:
        raise ModelError(f"--push {repo}: no name on the Hub; write it as owner/name") from None
    if constants.is_offline_mode():
        raise ModelError("--push: the Hub is switched off by HF_HUB_OFFLINE; unset it")
    if not get_token():
        raise ModelError(f"--push: no token for the Hub; {_SIGN_IN}")


def push(folder: str | Path, repo: str, private: bool = False, api: HfApi | None = None) -> str:
    """Upload a folder as a model, making the repository where there is none; returns its address.

    Args:
        private: of a repository that is made; one that is there keeps what it is.

    Raises:
        ModelError: the folder holds what nobody should load or see, or the Hub does not take it.
    """
    folder = Path(folder)
    if found := next(_unfit(folder), None):
        raise ModelError(
            f"{folder}: {found.relative_to(folder)} is a pickle or the trainer's own, which is never pushed; "
            "export the model to a folder of its own"
        )
    api = api or HfApi()
    try:
        address = api.create_repo(repo, repo_type="model", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo, repo_type="model", folder_path=folder, commit_message="Upload of searchr3 export"
        )
    except OfflineModeIsEnabled:
        raise ModelError("--push: the Hub is switched off by HF_HUB_OFFLINE; unset it") from None
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        mend = _SIGN_IN if status in (401, 403) else "the folder is there: try again with `hf upload`"
        raise ModelError(f"--push {repo}: the Hub refuses ({first_line(error)}); {mend}") from None
    except Exception as error:  # whatever the way to it says
        raise ModelError(
            f"--push {repo}: the Hub cannot be reached ({first_line(error)}); "
            f"check the network, then: hf upload {repo} {folder}"
        ) from None
    return str(address)


def _unfit(folder: Path) -> Iterator[Path]:
    """Files that may run code when they are read, or are the trainer's; links, which may lead anywhere."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        of_trainer = any(Path(part).match(pattern) for part in parts for pattern in _TRAINER)
        if of_trainer or path.is_symlink() or path.suffix in _PICKLES:
            yield path
