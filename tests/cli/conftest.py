"""What the tests of commands have in common."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths land in a folder of the test's own, and the process-wide silence is left out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("searchr3.cli.commands.hush_libraries", lambda: None)
