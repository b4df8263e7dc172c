"""Server-sent events come out whole, wherever the network cut them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_core import server_sent
from llava_core.errors import WorkerLost
from llava_core.server_sent import EventReader

STREAM = (
    b"\xef\xbb\xbfdata: one\n\n: a comment\n\nevent: x\nid: 1\ndata: tw\r\ndata:o\r\n\r\ndata\n\n"
    b"data:  three \xc3\xa9\r\rretry: 5\n\n\n\ndata: [DONE]\n\ndata: cut of"
)
EVENTS = ["one", "tw\no", "", " three é", "[DONE]"]


@given(st.lists(st.integers(0, len(STREAM))))
@settings(max_examples=100)
def test_events_are_the_same_however_they_are_cut(cuts: list[int]):
    places = [0, *sorted(cuts), len(STREAM)]
    reader = EventReader()
    found = [data for a, b in itertools.pairwise(places) for data in reader.feed(STREAM[a:b])]
    assert found == EVENTS


def test_an_event_is_there_with_its_last_byte():
    reader = EventReader()
    assert reader.feed(b"data: a\n") == []
    assert reader.feed(b"\n") == ["a"]
    assert reader.feed(b"data: b\r\r") == ["b"]


def test_an_event_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server_sent, "MAX_EVENT_BYTES", 100)
    reader = EventReader()
    reader.feed(b"data: " + b"x" * 50)
    with pytest.raises(WorkerLost):
        reader.feed(b"x" * 50)
