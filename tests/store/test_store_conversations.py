"""Conversations in a real database: what is written is read back, and nobody else's is ever touched."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select

from serve.store import conversations as kept
from serve.store import listing
from serve.store.database import Database
from serve.store.records import Generation, KeptChat, Listed
from serve.store.tables import FEEDBACK, GENERATIONS, MESSAGES
from tests.store.chats import ME, YOU, chat, message, small_chat

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def save(database: Database, made: KeptChat, before: KeptChat | None = None, now: datetime = NOON) -> bool:
    with database.writing() as connection:
        return kept.save(connection, made, before.messages if before else None, now)


def load(database: Database, id: str = "chat-1", owner: str = ME) -> KeptChat | None:
    with database.reading() as connection:
        return kept.load(connection, id, owner)


def titles(database: Database, query: str = "", owner: str = ME) -> list[str]:
    with database.reading() as connection:
        return [found.title for found in listing.listed(connection, owner, query)]


def test_a_tree_with_branches_figures_and_ratings_comes_back_as_it_was(database: Database) -> None:
    figures = Generation(
        "echo", "failed", {"top_p": 0.7}, -(1 << 63), "WorkerLost", "it went", None, 0.25, 1.5, 10, 3, 4, 2
    )
    made = chat(
        message("t1", None, "Helo", shown=False),
        message("a2", "t1", "Hi"),
        message("t3", None, "Hello", position=1),
        replace(message("a4", "t3", "", shown=False), generation=figures),
        replace(message("a5", "t3", "Good day 🐈 ‹›", position=1), rating="like", flagged=True),
        message("t6", "a5", "And now?"),
        message("a7", "t6", "part", status="streaming"),
    )
    save(database, made)
    assert load(database) == made


def test_only_what_changed_is_written_and_what_was_taken_away_goes_with_all_below_it(database: Database) -> None:
    first = chat(
        message("t1", None, "one"), message("a2", "t1", "uno"), message("t3", "a2", "two"), message("a4", "t3", "due")
    )
    save(database, first)
    second = chat(replace(first.messages[0], shown=False), first.messages[1], message("t5", None, "three", position=1))
    save(database, second, first)
    assert load(database) == replace(second, serial=3)
    with database.reading() as connection:
        assert connection.scalar(select(func.count()).select_from(GENERATIONS)) == 1


@pytest.mark.parametrize("known", [True, False])
def test_a_growing_answer_ends_as_it_was_last_written(database: Database, known: bool) -> None:
    last = None
    for said, status in (("", "waiting"), ("It", "streaming"), ("It is", "streaming"), ("It is.", "done")):
        now = chat(message("t1", None, "What?"), message("a2", "t1", said, status=status))
        save(database, now, last if known else None)
        last = now
    assert load(database) == last


def test_a_part_of_a_chat_is_added_without_taking_anything_away(database: Database) -> None:
    save(database, small_chat())
    later = chat(message("t1001", None, "later"), message("a1002", "t1001", "yes"))
    save(database, replace(later, whole=False))
    found = load(database)
    assert found is not None
    assert [one.key for one in found.messages] == ["t1", "a2", "t1001", "a1002"]
    assert found.title == "A chat"


def test_what_no_database_takes_is_left_out_of_texts(database: Database) -> None:
    save(database, small_chat(said="a\0b\ud800c"))
    found = load(database)
    assert found is not None
    assert found.messages[1].text == "ab?c"


def test_nobody_elses_chat_is_read_changed_renamed_shared_or_deleted(database: Database) -> None:
    save(database, small_chat())
    assert not save(database, small_chat(owner=YOU, said="mine now"))
    assert load(database, owner=YOU) is None
    assert titles(database, owner=YOU) == []
    with database.writing() as connection:
        assert not kept.rename(connection, "chat-1", YOU, "mine")
        assert kept.share(connection, "chat-1", YOU, NOON) is None
        assert not kept.remove(connection, "chat-1", YOU)
        assert kept.remove_all(connection, YOU) == ()
    assert load(database) == small_chat()


def test_the_latest_comes_first_and_a_look_at_another_branch_does_not_count(database: Database) -> None:
    for hour, name in enumerate(("first", "second")):
        save(database, replace(small_chat(name), title=name), now=NOON + timedelta(hours=hour))
    assert titles(database) == ["second", "first"]
    old = small_chat("first")
    looked = replace(old, title="first", messages=(old.messages[0], replace(old.messages[1], shown=False)))
    save(database, looked, old, NOON + timedelta(hours=5))
    assert titles(database) == ["second", "first"]
    more = replace(looked, messages=(*looked.messages, message("t3", "a2", "more")))
    save(database, more, looked, NOON + timedelta(hours=6))
    assert titles(database) == ["first", "second"]


def test_a_name_given_by_hand_stays(database: Database) -> None:
    save(database, small_chat())
    with database.writing() as connection:
        assert kept.rename(connection, "chat-1", ME, "My cat")
    save(database, replace(small_chat(said="more"), title="Another"))
    assert titles(database) == ["My cat"]


def test_chats_are_found_by_the_words_in_them(database: Database) -> None:
    save(database, replace(small_chat("a", said="Eine KATZE und Äpfel."), title="Garten"))
    save(database, replace(small_chat("b", said="100% more"), title="Prices"), now=NOON + timedelta(hours=1))
    for query, found in (
        ("katze", ["Garten"]),
        ("ÄPFEL", ["Garten"]),
        ("äpfel garten", ["Garten"]),
        ("100%", ["Prices"]),
        ("%", ["Prices"]),
        ("_", []),
        ("nothing", []),
        ("", ["Prices", "Garten"]),
    ):
        assert titles(database, query) == found, query


def test_a_search_shows_where_it_found_something(database: Database) -> None:
    save(database, small_chat(said="word " * 30 + "needle " + "word " * 30))
    with database.reading() as connection:
        (found,) = listing.listed(connection, ME, "NEEDLE")
    assert "needle" in found.found
    assert len(found.found) < 120


def compared(slot: int, comparison: str | None = "comparison-1", owner: str = ME) -> KeptChat:
    made = small_chat(f"column-{slot}", owner, said=f"said by {slot}")
    answer = replace(made.messages[1], generation=Generation(f"model-{slot}", "done"))
    return replace(made, messages=(made.messages[0], answer), comparison=comparison, slot=slot)


def entries(database: Database, query: str = "", owner: str = ME) -> list[Listed]:
    with database.reading() as connection:
        return list(listing.listed(connection, owner, query))


def test_the_columns_of_a_comparison_are_one_entry_from_left_to_right(database: Database) -> None:
    for hour, slot in enumerate((2, 0, 1)):
        save(database, compared(slot), now=NOON + timedelta(hours=hour))
    save(database, small_chat(), now=NOON + timedelta(hours=1))
    save(database, replace(compared(7, owner=YOU)))
    comparison, alone = entries(database)
    assert (comparison.id, alone.id) == ("comparison-1", "chat-1")
    assert [column.id for column in comparison.columns] == ["column-0", "column-1", "column-2"]
    assert comparison.models == ("model-0", "model-1", "model-2")
    assert (comparison.updated_at, alone.columns) == (NOON + timedelta(hours=2), ())
    (found,) = entries(database, "by 1")
    assert (found.id, len(found.columns)) == ("comparison-1", 3)
    assert load(database, "column-2") == compared(2)


def test_a_comparison_is_renamed_and_deleted_as_a_whole_by_its_owner_only(database: Database) -> None:
    for slot in (0, 1):
        save(database, compared(slot))
    save(database, compared(2, owner=YOU))
    with database.writing() as connection:
        assert kept.rename(connection, "comparison-1", ME, "Two cats")
    assert (titles(database), titles(database, owner=YOU)) == (["Two cats"], ["A chat"])
    with database.writing() as connection:
        assert kept.remove(connection, "comparison-1", ME) == ("column-0", "column-1")
        assert not kept.remove(connection, "comparison-1", ME)
    assert (titles(database), titles(database, owner=YOU)) == ([], ["A chat"])


def test_a_column_that_parts_is_a_chat_of_its_own(database: Database) -> None:
    for slot in (0, 1):
        save(database, compared(slot))
    with database.writing() as connection:
        kept.part(connection, "column-0", YOU)
        assert len(listing.listed(connection, ME)) == 1
        kept.part(connection, "column-0", ME)
    assert sorted(entry.id for entry in entries(database)) == ["column-0", "comparison-1"]


def test_a_comparison_is_kept_as_long_as_its_latest_column(database: Database) -> None:
    save(database, compared(0), now=NOON - timedelta(days=31))
    save(database, compared(1), now=NOON)
    save(database, compared(2, "comparison-2"), now=NOON - timedelta(days=31))
    with database.writing() as connection:
        assert kept.remove_older(connection, NOON - timedelta(days=30)) == 1
    assert [len(entry.columns) for entry in entries(database)] == [2]


def test_a_deleted_chat_leaves_nothing_behind(database: Database) -> None:
    save(database, small_chat())
    save(database, small_chat("other"))
    with database.writing() as connection:
        assert kept.remove(connection, "chat-1", ME)
    with database.reading() as connection:
        for table in (MESSAGES, GENERATIONS, FEEDBACK):
            assert connection.scalar(select(func.count()).where(table.c.conversation_id == "chat-1")) == 0
    assert load(database, "other") is not None


def test_chats_older_than_they_are_kept_go(database: Database) -> None:
    save(database, small_chat("old"), now=NOON - timedelta(days=31))
    save(database, small_chat("new"), now=NOON)
    with database.writing() as connection:
        assert kept.remove_older(connection, NOON - timedelta(days=30)) == 1
    assert load(database, "old") is None
    assert load(database, "new") is not None


def test_a_link_shows_the_chat_as_it_was_shared_until_it_is_withdrawn(database: Database) -> None:
    made = chat(
        message("t1", None, "Helo", shown=False),
        message("a2", "t1", "Hi"),
        message("t3", None, "Hello", position=1),
        message("a4", "t3", "Good day"),
    )
    save(database, made)
    with database.writing() as connection:
        token = kept.share(connection, "chat-1", ME, NOON)
    assert token is not None
    assert len(token) > 30
    save(database, replace(made, messages=(*made.messages, message("t5", "a4", "a secret"))), made)
    with database.writing() as connection:
        seen = kept.shared(connection, token)
        assert seen is not None
        assert [one.text for one in seen.messages] == ["Hello", "Good day"]
        (row,) = listing.listed(connection, ME)
        assert row.shared == token
        assert kept.withdraw(connection, "chat-1", ME)
        assert kept.shared(connection, token) is None
        assert kept.shared(connection, "guess") is None


def test_a_link_shows_no_more_than_was_there_when_it_was_made(database: Database) -> None:
    made = chat(message("t1", None, "Hello"), message("a2", "t1", "Good day", status="stopped"))
    save(database, made)
    with database.writing() as connection:
        token = kept.share(connection, "chat-1", ME, NOON)
    assert token is not None
    more = chat(made.messages[0], message("a2", "t1", "Good day, and a secret"), title="A secret name")
    save(database, more, made)
    with database.writing() as connection:
        kept.rename(connection, "chat-1", ME, "Another secret")
        seen = kept.shared(connection, token)
    assert seen is not None
    assert (seen.title, [one.text for one in seen.messages]) == ("A chat", ["Hello", "Good day"])


def test_a_link_made_while_an_answer_was_waited_for_shows_the_question_whatever_comes_of_it(
    database: Database,
) -> None:
    made = chat(message("t1", None, "Hello"), message("a2", "t1", "", status="waiting"))
    save(database, made)
    with database.writing() as connection:
        token = kept.share(connection, "chat-1", ME, NOON)
    assert token is not None
    for key, said in (("a2", "A secret"), ("a3", "Another answer")):
        save(database, chat(made.messages[0], message(key, "t1", said)))
        with database.reading() as connection:
            seen = kept.shared(connection, token)
        assert seen is not None
        assert [one.text for one in seen.messages] == ["Hello"]


def test_sharing_again_ends_the_earlier_link(database: Database) -> None:
    save(database, small_chat())
    with database.writing() as connection:
        first, second = (kept.share(connection, "chat-1", ME, NOON) for _ in range(2))
        assert first is not None
        assert second is not None
        assert kept.shared(connection, first) is None
        assert kept.shared(connection, second) is not None


def test_a_long_chat_with_many_branches_is_read_in_order(database: Database) -> None:
    rows = []
    parent = None
    for number in range(0, 300, 2):
        rows += [message(f"t{number}", parent, f"{number}"), message(f"a{number + 1}", f"t{number}", "yes")]
        parent = f"a{number + 1}"
    save(database, chat(*rows))
    found = load(database)
    assert found is not None
    assert found.messages == tuple(rows)
