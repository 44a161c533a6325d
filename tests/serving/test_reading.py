"""How long a reply may be."""

import pytest

from searchr3.model import SearchR3
from searchr3.serving.backend import Ask, Refused
from searchr3.serving.reading import Reading

TURNS = (("user", "Hello"),)


@pytest.mark.parametrize(
    ("room", "ask", "most"),
    [
        (None, Ask(TURNS, 1024, fewer=True), 1024),
        (2000, Ask(TURNS, 1024, fewer=True), 1024),
        (5, Ask(TURNS, 1024, fewer=True), 5),
        (0, Ask(TURNS, 1024, fewer=True), None),
        (5, Ask(TURNS, 5), 5),
        (5, Ask(TURNS, 6), None),
    ],
)
def test_a_reply_has_the_room_that_is_left(
    reference: SearchR3, room: int | None, ask: Ask, most: int | None
) -> None:
    """Who named a number gets it or is refused; who named none gets what there is."""
    prompt = reference.conversation.chat(TURNS)
    reading = Reading(reference.conversation, 8192, None if room is None else len(prompt) + room)
    if most is None:
        with pytest.raises(Refused, match=r"more than the model's .*; ask for less, or leave out old turns"):
            reading.prompt(ask)
    else:
        assert reading.prompt(ask) == (prompt, most)
