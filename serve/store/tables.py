"""The tables, as SQLAlchemy describes them; `migrations/` makes them, and a test holds the two to each other.

A conversation is a tree of messages: questions hang below answers and answers below questions. Of messages with the
same parent one is `shown`, and those form the path a person sees. What a model was asked with and what became of it
stands in `generations`, one row per answer.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)


class Moment(TypeDecorator[datetime]):
    """A point in time, always in UTC: SQLite keeps no time zone, so it is put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


METADATA = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

IMAGES = Table(
    "images",
    METADATA,
    Column("sha256", String(64), primary_key=True),
    Column("mime", String(40), nullable=False),
    Column("size", Integer, nullable=False),
    Column("data", LargeBinary, nullable=False),
    Column("created_at", Moment, nullable=False),
)

CONVERSATIONS = Table(
    "conversations",
    METADATA,
    Column("id", String(80), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("title", String(200), nullable=False),
    Column("named", Boolean, nullable=False),  # by the person: then the first question no longer names it
    Column("place", String(40), nullable=False),  # the tab it was held in
    Column("system", Text, nullable=False),
    Column("serial", Integer, nullable=False),  # the last number given to a message
    Column("created_at", Moment, nullable=False),
    Column("updated_at", Moment, nullable=False, index=True),
    Column("comparison", String(80)),  # which it is a column of; those of one comparison have the same owner
    Column("slot", Integer),  # its place among the columns
    Index("ix_conversations_owner_updated_at", "owner", "updated_at"),
)


def _of_a_message(*, primary: bool = True) -> tuple[Any, ...]:
    return (
        Column("conversation_id", String(80), primary_key=primary, nullable=False),
        Column("message_key", String(20), primary_key=primary, nullable=False),
        ForeignKeyConstraint(
            ["conversation_id", "message_key"], ["messages.conversation_id", "messages.key"], ondelete="CASCADE"
        ),
    )


MESSAGES = Table(
    "messages",
    METADATA,
    Column("conversation_id", ForeignKey("conversations.id", ondelete="CASCADE"), primary_key=True),
    Column("key", String(20), primary_key=True),
    Column("parent", String(20)),
    Column("role", String(10), nullable=False),
    Column("position", Integer, nullable=False),
    Column("shown", Boolean, nullable=False),
    Column("text", Text, nullable=False),
    Column("created_at", Moment, nullable=False),
    ForeignKeyConstraint(
        ["conversation_id", "parent"], ["messages.conversation_id", "messages.key"], ondelete="CASCADE"
    ),
    Index("ix_messages_conversation_id_parent", "conversation_id", "parent"),
    CheckConstraint("role IN ('user', 'assistant')", "role"),
    CheckConstraint("parent IS NULL OR parent <> key", "parent"),
)

MESSAGE_IMAGES = Table(
    "message_images",
    METADATA,
    *_of_a_message(),
    Column("position", Integer, primary_key=True),
    Column("sha256", ForeignKey("images.sha256"), index=True),  # none where the file was no picture we can strip
    Column("name", String(200), nullable=False),
    Column("mime", String(40), nullable=False),
    Column("size", Integer, nullable=False),
    Column("example", String(200), nullable=False),
)

GENERATIONS = Table(
    "generations",
    METADATA,
    *_of_a_message(),
    Column("model", String(200), nullable=False),
    Column("parameters", JSON, nullable=False),
    Column("seed", BigInteger),
    Column("status", String(12), nullable=False),
    Column("error_class", String(60)),
    Column("error_message", Text),
    Column("finish_reason", String(20)),
    Column("first_token_s", Float),
    Column("answer_s", Float),
    Column("prompt_tokens", Integer),
    Column("completion_tokens", Integer),
    Column("image_tokens", Integer),
    Column("cached_tokens", Integer),
    CheckConstraint("status IN ('waiting', 'streaming', 'done', 'stopped', 'failed')", "status"),
)

FEEDBACK = Table(
    "feedback",
    METADATA,
    *_of_a_message(),
    Column("rating", String(10), nullable=False),
    Column("flagged", Boolean, nullable=False),
    Column("updated_at", Moment, nullable=False),
    CheckConstraint("rating IN ('', 'like', 'dislike')", "rating"),
)

SHARES = Table(
    "shares",
    METADATA,
    Column("token", String(80), primary_key=True),
    Column("conversation_id", ForeignKey("conversations.id", ondelete="CASCADE"), nullable=False, unique=True),
    Column("last_key", String(20), nullable=False),  # what is shared ends with this message
    Column("last_length", Integer),  # and with so many characters of it, should it be gone on with later
    Column("title", String(200)),  # as it was then
    Column("created_at", Moment, nullable=False),
)

BATTLES = Table(
    "battles",
    METADATA,
    Column("id", String(80), primary_key=True),
    Column("owner", String(64), nullable=False, index=True),
    Column("place", String(40), nullable=False),
    Column("category", String(60)),
    Column("blind", Boolean, nullable=False),
    Column("left_out", String(60)),  # why it does not count, a model that told its name for one
    Column("created_at", Moment, nullable=False, index=True),
    Column("turns", Integer),  # questions up to the vote
    Column("language", String(40)),  # of the questions, by its English name
)

BATTLE_SLOTS = Table(
    "battle_slots",
    METADATA,
    Column("battle_id", ForeignKey("battles.id", ondelete="CASCADE"), primary_key=True),
    Column("slot", Integer, primary_key=True),
    Column("model", String(200), nullable=False),
    Column("conversation_id", ForeignKey("conversations.id", ondelete="SET NULL"), index=True),
    Column("style", JSON),  # length and layout of the answers, as numbers
    CheckConstraint("slot >= 0", "slot"),
)

VOTES = Table(
    "votes",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("battle_id", ForeignKey("battles.id", ondelete="CASCADE"), nullable=False),
    Column("owner", String(64), nullable=False),
    Column("verdict", String(10), nullable=False),
    Column("winner", Integer),
    Column("reason", Text),
    Column("created_at", Moment, nullable=False, index=True),
    Column("replaced_at", Moment),  # by a later vote of the same person; then it no longer counts
    ForeignKeyConstraint(["battle_id", "winner"], ["battle_slots.battle_id", "battle_slots.slot"]),
    CheckConstraint("verdict IN ('slot', 'tie', 'both_bad')", "verdict"),
    CheckConstraint("(verdict = 'slot') = (winner IS NOT NULL)", "winner"),
    Index(
        "uq_votes_live",
        "battle_id",
        "owner",
        unique=True,
        sqlite_where=text("replaced_at IS NULL"),
        postgresql_where=text("replaced_at IS NULL"),
    ),
)

RATING_SNAPSHOTS = Table(
    "rating_snapshots",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("method", String(60), nullable=False),
    Column("parameters", JSON, nullable=False),
    Column("votes", Integer, nullable=False),
    Column("created_at", Moment, nullable=False, index=True),
)

RATINGS = Table(
    "ratings",
    METADATA,
    Column("snapshot_id", ForeignKey("rating_snapshots.id", ondelete="CASCADE"), nullable=False),
    Column("model", String(200), nullable=False),
    Column("rating", Float, nullable=False),
    Column("low", Float, nullable=False),
    Column("high", Float, nullable=False),
    Column("votes", Integer, nullable=False),
    UniqueConstraint("snapshot_id", "model"),
    CheckConstraint("low <= rating AND rating <= high", "interval"),
)
