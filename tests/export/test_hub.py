"""Onto the Hub, in the shape of a fake of its client; no request leaves the machine."""

import shutil
from pathlib import Path

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from typer.testing import CliRunner

from searchr3.cli import app
from searchr3.errors import ModelError
from searchr3.export import hub


class FakeHub:
    """Notes what is asked of it."""

    def __init__(self, error: Exception | None = None):
        self.error, self.calls = error, []

    def create_repo(self, repo_id, **options):
        if self.error:
            raise self.error
        self.calls.append(("create", repo_id, options))
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, **options):
        files = [one for one in Path(options["folder_path"]).rglob("*") if one.is_file()]
        self.calls.append(("upload", options["repo_id"], sorted(one.name for one in files)))


def refusal(status):
    response = httpx2.Response(status, request=httpx2.Request("POST", "https://huggingface.co/api"))
    return HfHubHTTPError(f"{status} Client Error", response=response)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "1_Pooling").mkdir()
    for name in ("model.safetensors", "README.md", "1_Pooling/config.json"):
        (tmp_path / name).write_text("{}")
    return tmp_path


@pytest.mark.parametrize("private", [True, False])
def test_a_folder_is_uploaded_to_a_repository_of_its_own(folder, private):
    fake = FakeHub()
    assert hub.push(folder, "me/mine", private, fake) == "https://huggingface.co/me/mine"
    (made, uploaded) = fake.calls
    assert made == ("create", "me/mine", {"repo_type": "model", "private": private, "exist_ok": True})
    assert uploaded == ("upload", "me/mine", ["README.md", "config.json", "model.safetensors"])


@pytest.mark.parametrize(
    "name",
    [
        *("pytorch_model.bin", "deep/weights.pt", "x.pkl", "optimizer.safetensors", "rng_state_0.json"),
        *(
            "trainer_state.json",
            "checkpoint-5/config.json",
            "training_args.json",
            ".env",
            "episodes.jsonl.gz",
        ),
    ],
)
def test_pickles_and_the_trainers_files_are_never_pushed(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("x")
    fake = FakeHub()
    with pytest.raises(ModelError, match="never pushed"):
        hub.push(folder, "me/mine", api=fake)
    assert not fake.calls


def test_a_link_is_not_followed(folder, tmp_path_factory):
    secret = tmp_path_factory.mktemp("home") / "secret.json"
    secret.write_text("{}")
    (folder / "vocab.json").symlink_to(secret)
    with pytest.raises(ModelError, match="never pushed"):
        hub.push(folder, "me/mine", api=FakeHub())


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (refusal(401), "hf auth login"),
        (refusal(403), "hf auth login"),
        (refusal(500), "try again"),
        (httpx2.ConnectError("no route"), "cannot be reached"),
        (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE"),
    ],
)
def test_what_goes_wrong_is_one_line_with_a_mend(folder, error, says):
    with pytest.raises(ModelError, match=says) as told:
        hub.push(folder, "me/mine", api=FakeHub(error))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("repo", ["mine", "a/b/c", "me/..", "me/mi ne", ""])
def test_a_name_that_is_none_is_told_before_the_work(repo, monkeypatch):
    monkeypatch.setattr(hub.constants, "is_offline_mode", lambda: False)
    monkeypatch.setattr(hub, "get_token", lambda: "hf_x")
    with pytest.raises(ModelError, match="owner/name"):
        hub.check_push(repo)
    hub.check_push("me/mine")


def test_a_missing_token_or_network_is_told_before_the_work(monkeypatch):
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
        hub.check_push("me/mine")
    monkeypatch.setattr(hub.constants, "is_offline_mode", lambda: False)
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(ModelError, match="hf auth login"):
        hub.check_push("me/mine")


# -- the command


def command(*arguments):
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setattr("searchr3.cli.commands.hush_libraries", lambda: None)


def test_export_writes_and_pushes(tiny_model, tmp_path, monkeypatch, quiet):
    fake = FakeHub()
    monkeypatch.setattr(hub.constants, "is_offline_mode", lambda: False)
    monkeypatch.setattr(hub, "get_token", lambda: "hf_x")
    monkeypatch.setattr(hub, "HfApi", lambda: fake)
    result = command(tiny_model, "--output", tmp_path / "st", "--push", "me/mine", "--private")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [f"wrote {tmp_path / 'st'}", "pushed https://huggingface.co/me/mine"]
    assert [call[0] for call in fake.calls] == ["create", "upload"] and fake.calls[0][2]["private"]
    assert 'SentenceTransformer("me/mine")' in (tmp_path / "st" / "README.md").read_text()


def test_a_qwen2_model_is_told_where_it_cannot_go(qwen2_model, tmp_path, quiet):
    result = command(qwen2_model, "--output", tmp_path / "st")
    assert result.exit_code == 0 and "not for text-embeddings-inference" in result.output


def test_nothing_is_written_when_it_cannot_be_pushed(tiny_model, tmp_path, quiet):
    for options, says in ((["--push", "me/mine"], "HF_HUB_OFFLINE"), (["--private"], "add --push")):
        result = command(tiny_model, "--output", tmp_path / "st", *options)
        assert result.exit_code == 1 and says in result.stderr
    assert not (tmp_path / "st").exists()


@pytest.mark.parametrize("output", ["run/stage2", "run", "run/data/..", "link"])
def test_neither_the_model_nor_its_run_is_replaced_by_its_export(tiny_model, tmp_path, quiet, output):
    (tmp_path / "run/data").mkdir(parents=True)
    shutil.copytree(tiny_model, tmp_path / "run/stage2")
    (tmp_path / "link").symlink_to("run")
    result = command(tmp_path / "run/stage2", "--output", tmp_path / output, "--overwrite")
    assert result.exit_code == 1 and "is the model itself, or a folder around it" in result.stderr
    assert (tmp_path / "run/stage2/searchr3.json").is_file() and (tmp_path / "run/data").is_dir()
