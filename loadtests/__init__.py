"""Load tests: traffic at a stated rate, what it cost, and whether every answer was counted once.

Nothing in `src` imports this package; it asks a gateway as a product does, over gRPC.
"""
