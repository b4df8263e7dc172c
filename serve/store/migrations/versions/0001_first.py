"""The first tables: chats and their pictures, shares, feedback, battles, votes and ratings."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _moment() -> sa.DateTime:
    return sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "battles",
        sa.Column("id", sa.String(length=80), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("place", sa.String(length=40), nullable=False),
        sa.Column("category", sa.String(length=60), nullable=True),
        sa.Column("blind", sa.Boolean(), nullable=False),
        sa.Column("left_out", sa.String(length=60), nullable=True),
        sa.Column("created_at", _moment(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_battles"),
    )
    op.create_index("ix_battles_created_at", "battles", ["created_at"], unique=False)
    op.create_index("ix_battles_owner", "battles", ["owner"], unique=False)
    op.create_table(
        "conversations",
        sa.Column("id", sa.String(length=80), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("title", sa.String(length=200), nullable=False),
        sa.Column("named", sa.Boolean(), nullable=False),
        sa.Column("place", sa.String(length=40), nullable=False),
        sa.Column("system", sa.Text(), nullable=False),
        sa.Column("serial", sa.Integer(), nullable=False),
        sa.Column("created_at", _moment(), nullable=False),
        sa.Column("updated_at", _moment(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_conversations"),
    )
    op.create_index("ix_conversations_owner_updated_at", "conversations", ["owner", "updated_at"], unique=False)
    op.create_index("ix_conversations_updated_at", "conversations", ["updated_at"], unique=False)
    op.create_table(
        "images",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("mime", sa.String(length=40), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", _moment(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name="pk_images"),
    )
    op.create_table(
        "rating_snapshots",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("method", sa.String(length=60), nullable=False),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("votes", sa.Integer(), nullable=False),
        sa.Column("created_at", _moment(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_rating_snapshots"),
    )
    op.create_index("ix_rating_snapshots_created_at", "rating_snapshots", ["created_at"], unique=False)
    op.create_table(
        "battle_slots",
        sa.Column("battle_id", sa.String(length=80), nullable=False),
        sa.Column("slot", sa.Integer(), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("conversation_id", sa.String(length=80), nullable=True),
        sa.CheckConstraint("slot >= 0", name="ck_battle_slots_slot"),
        sa.ForeignKeyConstraint(["battle_id"], ["battles.id"], name="fk_battle_slots_battle_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["conversation_id"], ["conversations.id"], name="fk_battle_slots_conversation_id", ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("battle_id", "slot", name="pk_battle_slots"),
    )
    op.create_index("ix_battle_slots_conversation_id", "battle_slots", ["conversation_id"], unique=False)
    op.create_table(
        "messages",
        sa.Column("conversation_id", sa.String(length=80), nullable=False),
        sa.Column("key", sa.String(length=20), nullable=False),
        sa.Column("parent", sa.String(length=20), nullable=True),
        sa.Column("role", sa.String(length=10), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("shown", sa.Boolean(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("created_at", _moment(), nullable=False),
        sa.CheckConstraint("role IN ('user', 'assistant')", name="ck_messages_role"),
        sa.CheckConstraint("parent IS NULL OR parent <> key", name="ck_messages_parent"),
        sa.ForeignKeyConstraint(
            ["conversation_id", "parent"],
            ["messages.conversation_id", "messages.key"],
            name="fk_messages_conversation_id_parent",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["conversation_id"], ["conversations.id"], name="fk_messages_conversation_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("conversation_id", "key", name="pk_messages"),
    )
    op.create_index("ix_messages_conversation_id_parent", "messages", ["conversation_id", "parent"], unique=False)
    op.create_table(
        "ratings",
        sa.Column("snapshot_id", sa.Integer(), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("rating", sa.Float(), nullable=False),
        sa.Column("low", sa.Float(), nullable=False),
        sa.Column("high", sa.Float(), nullable=False),
        sa.Column("votes", sa.Integer(), nullable=False),
        sa.CheckConstraint("low <= rating AND rating <= high", name="ck_ratings_interval"),
        sa.ForeignKeyConstraint(
            ["snapshot_id"], ["rating_snapshots.id"], name="fk_ratings_snapshot_id", ondelete="CASCADE"
        ),
        sa.UniqueConstraint("snapshot_id", "model", name="uq_ratings_snapshot_id_model"),
    )
    op.create_table(
        "shares",
        sa.Column("token", sa.String(length=80), nullable=False),
        sa.Column("conversation_id", sa.String(length=80), nullable=False),
        sa.Column("last_key", sa.String(length=20), nullable=False),
        sa.Column("created_at", _moment(), nullable=False),
        sa.ForeignKeyConstraint(
            ["conversation_id"], ["conversations.id"], name="fk_shares_conversation_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("token", name="pk_shares"),
        sa.UniqueConstraint("conversation_id", name="uq_shares_conversation_id"),
    )
    op.create_table(
        "feedback",
        sa.Column("conversation_id", sa.String(length=80), nullable=False),
        sa.Column("message_key", sa.String(length=20), nullable=False),
        sa.Column("rating", sa.String(length=10), nullable=False),
        sa.Column("flagged", sa.Boolean(), nullable=False),
        sa.Column("updated_at", _moment(), nullable=False),
        sa.CheckConstraint("rating IN ('', 'like', 'dislike')", name="ck_feedback_rating"),
        sa.ForeignKeyConstraint(
            ["conversation_id", "message_key"],
            ["messages.conversation_id", "messages.key"],
            name="fk_feedback_conversation_id_message_key",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("conversation_id", "message_key", name="pk_feedback"),
    )
    op.create_table(
        "generations",
        sa.Column("conversation_id", sa.String(length=80), nullable=False),
        sa.Column("message_key", sa.String(length=20), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=True),
        sa.Column("status", sa.String(length=12), nullable=False),
        sa.Column("error_class", sa.String(length=60), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("finish_reason", sa.String(length=20), nullable=True),
        sa.Column("first_token_s", sa.Float(), nullable=True),
        sa.Column("answer_s", sa.Float(), nullable=True),
        sa.Column("prompt_tokens", sa.Integer(), nullable=True),
        sa.Column("completion_tokens", sa.Integer(), nullable=True),
        sa.Column("image_tokens", sa.Integer(), nullable=True),
        sa.Column("cached_tokens", sa.Integer(), nullable=True),
        sa.CheckConstraint(
            "status IN ('waiting', 'streaming', 'done', 'stopped', 'failed')", name="ck_generations_status"
        ),
        sa.ForeignKeyConstraint(
            ["conversation_id", "message_key"],
            ["messages.conversation_id", "messages.key"],
            name="fk_generations_conversation_id_message_key",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("conversation_id", "message_key", name="pk_generations"),
    )
    op.create_table(
        "message_images",
        sa.Column("conversation_id", sa.String(length=80), nullable=False),
        sa.Column("message_key", sa.String(length=20), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=True),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("mime", sa.String(length=40), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("example", sa.String(length=200), nullable=False),
        sa.ForeignKeyConstraint(
            ["conversation_id", "message_key"],
            ["messages.conversation_id", "messages.key"],
            name="fk_message_images_conversation_id_message_key",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["sha256"], ["images.sha256"], name="fk_message_images_sha256"),
        sa.PrimaryKeyConstraint("conversation_id", "message_key", "position", name="pk_message_images"),
    )
    op.create_index("ix_message_images_sha256", "message_images", ["sha256"], unique=False)
    op.create_table(
        "votes",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("battle_id", sa.String(length=80), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("verdict", sa.String(length=10), nullable=False),
        sa.Column("winner", sa.Integer(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("created_at", _moment(), nullable=False),
        sa.Column("replaced_at", _moment(), nullable=True),
        sa.CheckConstraint("(verdict = 'slot') = (winner IS NOT NULL)", name="ck_votes_winner"),
        sa.CheckConstraint("verdict IN ('slot', 'tie', 'both_bad')", name="ck_votes_verdict"),
        sa.ForeignKeyConstraint(
            ["battle_id", "winner"], ["battle_slots.battle_id", "battle_slots.slot"], name="fk_votes_battle_id_winner"
        ),
        sa.ForeignKeyConstraint(["battle_id"], ["battles.id"], name="fk_votes_battle_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_votes"),
    )
    op.create_index("ix_votes_created_at", "votes", ["created_at"], unique=False)
    op.create_index(
        "uq_votes_live",
        "votes",
        ["battle_id", "owner"],
        unique=True,
        sqlite_where=sa.text("replaced_at IS NULL"),
        postgresql_where=sa.text("replaced_at IS NULL"),
    )
