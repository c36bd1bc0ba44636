"""Marks and manifests in SQL. Imported by the composition root only."""
