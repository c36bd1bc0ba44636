"""Logs of usage records. Imported by the composition root only."""
