"""Entry of the process in which Locust runs: the standard library is patched before anything else is imported.

Locust's users are greenlets. gevent makes Python's own waiting theirs, and gRPC's core is told to wait with
gevent too (`grpc.experimental.gevent`); without that one call would stop all users. Both hold for the whole
process, so it has one to itself.
"""

from __future__ import annotations

from gevent import monkey


def main() -> None:
    """Patch, then run what `locust_users` says."""
    monkey.patch_all()
    # In this order: what is imported below makes locks, and gRPC's objects come after `init_gevent`.
    import grpc.experimental.gevent as grpc_gevent  # noqa: PLC0415

    grpc_gevent.init_gevent()
    from loadtests.locust_users import serve  # noqa: PLC0415

    serve()


if __name__ == "__main__":
    main()
