"""How long a battle was and how its answers were written, which ratings take into account."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("battles", sa.Column("turns", sa.Integer(), nullable=True))
    op.add_column("battle_slots", sa.Column("style", sa.JSON(), nullable=True))
