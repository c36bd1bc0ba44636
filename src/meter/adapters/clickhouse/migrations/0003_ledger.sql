-- What each counter must show: the sum of its records' effects. Marker rows as in usage: limit and period 0.
CREATE TABLE IF NOT EXISTS ledger
(
    bucket UInt32,
    limit Int64,
    period Int64,
    used SimpleAggregateFunction(sum, Int64),
    held SimpleAggregateFunction(sum, Int64),
    manifest SimpleAggregateFunction(max, UInt64)
)
ENGINE = AggregatingMergeTree
ORDER BY (bucket, limit, period)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1
