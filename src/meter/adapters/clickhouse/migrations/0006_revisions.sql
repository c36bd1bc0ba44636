-- Windows of `aggregates` that were worked out anew, and which of their rows count since. Written after those rows: until
-- then the earlier ones count.
CREATE TABLE IF NOT EXISTS revisions
(
    tenant LowCardinality(String),
    account String,
    meter LowCardinality(String),
    window DateTime('UTC'),
    revision SimpleAggregateFunction(max, UInt64)
)
ENGINE = AggregatingMergeTree
ORDER BY (tenant, account, meter, window)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1
