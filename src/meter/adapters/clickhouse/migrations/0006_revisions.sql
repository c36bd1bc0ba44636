-- Windows of `aggregates` that were worked out anew, and which of their rows count since. Written after those rows: until
-- then the earlier ones count. A quarter hour's hour, day and month are in the same part.
CREATE TABLE IF NOT EXISTS revisions
(
    tenant LowCardinality(String),
    grain UInt8,
    account String,
    meter LowCardinality(String),
    window DateTime('UTC'),
    revision SimpleAggregateFunction(max, UInt64)
)
ENGINE = AggregatingMergeTree
ORDER BY (tenant, grain, meter, window, account)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1
