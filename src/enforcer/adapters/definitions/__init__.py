"""The definitions in SQLite (embedded) or PostgreSQL. Imported by the composition root and the command line."""
