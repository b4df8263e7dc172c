"""How long the last message of a shared chat was, and what the chat was called, when the link was made."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("shares", sa.Column("last_length", sa.Integer(), nullable=True))
    op.add_column("shares", sa.Column("title", sa.String(length=200), nullable=True))
