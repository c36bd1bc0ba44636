"""What the ports are implemented with. Imported by the composition root only."""
