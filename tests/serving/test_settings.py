"""Who may ask: loopback or a key, and keys that are worth something."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchr3.errors import SearchR3Error
from searchr3.serving.settings import KEYS, read_keys, settings

KEY, OTHER = "first-key-of-many", "second-key-of-many"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_this_machine_needs_no_key(host: str) -> None:
    assert settings(host=host).is_local


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", ""])
def test_the_network_needs_a_key_or_a_word(host: str) -> None:
    with pytest.raises(SearchR3Error, match="anyone who reaches it can use the model; set SEARCHR3_API_KEYS"):
        settings(host=host)
    assert not settings(host=host, keys=read_keys({KEYS: KEY})).is_local
    assert not settings(host=host, allow_unauthenticated=True).keys


def test_keys_are_those_of_environment_and_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{OTHER}\n\n")
    bounds = settings(keys=read_keys({KEYS: f" {KEY} ,"}, file))
    assert bounds.allows(f"Bearer {KEY}".encode()) and bounds.allows(f"bearer  {OTHER} ".encode())
    for wrong in ("", "Bearer", "Bearer ", KEY, f"Basic {KEY}", f"Bearer {KEY}x"):
        assert not bounds.allows(wrong.encode())
    assert KEY not in repr(bounds) and settings().allows(b"")


@given(st.binary(max_size=60))
def test_nothing_else_opens(header: bytes) -> None:
    bounds = settings(keys=read_keys({KEYS: KEY}))
    assert not bounds.allows(header) and not bounds.allows(b"Bearer " + header)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no API key; write one a line"),
        (b"\xff\xfe", "cannot be read"),
        (b"guess-me", "a key of 8 characters is guessed soon"),
        (None, "cannot be read"),
    ],
)
def test_a_file_of_no_use(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SearchR3Error) as caught:
        read_keys({}, file)
    assert message in str(caught.value) and "guess-me" not in str(caught.value)


@pytest.mark.parametrize("values", [{"port": 70000}, {"seconds": 0}, {"batch": 0}, {"seconds": float("nan")}])
def test_what_is_out_of_range(values: dict[str, float]) -> None:
    with pytest.raises(SearchR3Error, match=f"{next(iter(values))}: .*; see searchr3 serve --help"):
        settings(**values)
