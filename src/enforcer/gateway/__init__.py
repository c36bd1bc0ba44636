"""The use cases: what clients may ask for, between the transport and the ports. Imported by transport and app."""

from enforcer.gateway.gateway import Gateway

__all__ = ["Gateway"]
