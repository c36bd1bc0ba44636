"""What the meter needs of the world, as protocols. Imported by its services and by adapters."""
