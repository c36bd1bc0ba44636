"""Alembic's entry: runs on the connection that `meter.adapters.sql.marks` hands over."""

from alembic import context

from meter.adapters.sql.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table="meter_alembic_version",
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
