"""How calls come in: gRPC services, their callers and errors, and HTTP for operators. Imported by app only."""
