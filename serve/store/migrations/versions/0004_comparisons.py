"""Which comparison a conversation is a column of, and which column."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("conversations", sa.Column("comparison", sa.String(length=80), nullable=True))
    op.add_column("conversations", sa.Column("slot", sa.Integer(), nullable=True))
