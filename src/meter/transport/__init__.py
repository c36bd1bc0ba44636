"""The meter's gRPC services. Imported by the composition root only."""
