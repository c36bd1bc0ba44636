"""Data folders as earlier versions left them, and how they were made."""
