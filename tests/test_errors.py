"""One base class, so that one `except` shows every user error as one line."""

import pytest

from searchr3.errors import DataError, ModelError, RecipeError, SearchR3Error


@pytest.mark.parametrize("error", [DataError, RecipeError, ModelError])
def test_every_user_error_is_caught_by_the_base_and_keeps_its_line(error: type[SearchR3Error]) -> None:
    with pytest.raises(SearchR3Error) as caught:
        raise error("corpus.jsonl:3: empty text; remove the line")
    assert str(caught.value) == "corpus.jsonl:3: empty text; remove the line"


def test_the_kinds_are_told_apart() -> None:
    kinds = (DataError, RecipeError, ModelError)
    assert not any(issubclass(a, b) for a in kinds for b in kinds if a is not b)
