"""What the gateway needs of the world, as protocols. Imported by the gateway and by adapters."""
