"""Answers on disk."""

import errno
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchr3.dataset.answer_log import AnswerLog, read_answers
from searchr3.errors import DataError, SearchR3Error

ROWS = [{"query": f"q{n}", "asked": "abc", "answer": 'figs\u2028ä\n"x"'} for n in range(3)]


def written(path, rows=ROWS):
    with AnswerLog(path) as log:
        for row in rows:
            log.append(row)


def test_what_is_appended_is_read_and_stays(tmp_path):
    path = tmp_path / "new" / "log.jsonl"
    assert read_answers(path) == []
    written(path)
    written(path, [{"query": "q9", "asked": "", "failed": "empty answer"}])
    assert [row["query"] for row in read_answers(path)] == ["q0", "q1", "q2", "q9"]
    assert read_answers(path)[:3] == ROWS


@given(data=st.data())
def test_a_cut_last_line_is_left_out_and_then_written_over(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("cut") / "log.jsonl"
    written(path)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    kept = whole[:cut].count(b"\n")
    assert read_answers(path) == ROWS[:kept]
    assert path.read_bytes() == whole[:cut], "reading changes nothing"
    written(path, ROWS[kept:])
    assert path.read_bytes() == whole


def test_a_row_is_there_before_the_log_is_closed(tmp_path):
    with AnswerLog(tmp_path / "log.jsonl") as log:
        for number, row in enumerate(ROWS, start=1):
            log.append(row)
            assert read_answers(tmp_path / "log.jsonl") == ROWS[:number]


@pytest.mark.parametrize(
    "line", ["{", "[]", '"a"', "1", '{"query": "q"}', '{"query": 1, "asked": "a"}', "\x00", ""]
)
def test_another_line_is_named(tmp_path, line):
    path = tmp_path / "log.jsonl"
    written(path)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=r"log\.jsonl:4: no answer"):
        read_answers(path)


def test_one_writer_at_a_time(tmp_path):
    path = tmp_path / "log.jsonl"
    with AnswerLog(path) as log:
        log.append(ROWS[0])
        with pytest.raises(SearchR3Error, match="another searchr3 writes to it"), AnswerLog(path):
            pass
    written(path, ROWS[1:])
    assert read_answers(path) == ROWS


def test_no_empty_log_is_left(tmp_path):
    written(tmp_path / "log.jsonl", [])
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SearchR3Error, match="cannot be written"), AnswerLog(tmp_path / "file" / "log.jsonl"):
        pass


class FullDisk(io.BufferedRandom):
    """What a full disk does not take is tried again when the file is closed."""

    def flush(self):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_one_line(tmp_path):
    with (
        pytest.raises(SearchR3Error, match=r"log\.jsonl: no space left on the disk"),
        AnswerLog(tmp_path / "log.jsonl") as log,
    ):
        log._file = FullDisk(log._file.detach())
        log.append(ROWS[0])
    written(tmp_path / "log.jsonl")
    assert read_answers(tmp_path / "log.jsonl") == ROWS
