"""The command line `metergate`, at the top of `enforcer`: may import all of it; nothing imports it."""

from enforcer.cli.app import main

__all__ = ["main"]
