"""Redis keys that the meter reads. All keys of a bucket share one hash tag, so that one script may touch them."""

from __future__ import annotations

__all__ = ["bucket_tag", "outbox"]


def bucket_tag(bucket: int) -> str:
    """The prefix of every key of `bucket`."""
    return f"{{b{bucket}}}:"


def outbox(bucket: int) -> str:
    """The stream of usage records, ids `<generation>-<sequence>`."""
    return f"{bucket_tag(bucket)}o"
