"""The language that the models of a battle were asked in."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("battles", sa.Column("language", sa.String(length=40), nullable=True))
