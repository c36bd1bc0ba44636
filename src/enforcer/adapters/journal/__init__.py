"""Journals of emergency uses."""
