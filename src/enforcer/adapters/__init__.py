"""What the ports are implemented with. Imported by the composition root and the command line only."""
