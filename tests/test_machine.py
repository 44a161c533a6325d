"""What something ran on."""

import pytest
import torch

from searchr3.machine import LIBRARIES, machine


def test_a_machine_is_told_with_the_versions_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = machine(("torch",))
    assert found["processor"] and int(found["cores"]) > 0 and found["torch"]
    assert "gpu" not in found and "trl" not in found
    assert machine().keys() >= {*LIBRARIES, "searchr3", "python", "platform"}


def test_its_gpus_are_named_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", ["H200", "L4", "H200"].__getitem__)
    assert machine()["gpu"] == "2 × H200, 1 × L4"
