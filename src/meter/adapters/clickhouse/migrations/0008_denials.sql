-- What was refused, by quarter hour, by why, and by the limit that refused; 0 where no limit did.
-- manifest: marker rows as in usage.
CREATE TABLE IF NOT EXISTS denials
(
    tenant LowCardinality(String),
    meter LowCardinality(String),
    window DateTime('UTC'),
    account String,
    customer String,
    reason Int64,
    limit Int64,
    events SimpleAggregateFunction(sum, UInt64),
    quantity SimpleAggregateFunction(sum, Int128),
    manifest SimpleAggregateFunction(max, UInt64),
    PROJECTION by_customer (SELECT * ORDER BY tenant, customer, meter, window)
)
ENGINE = AggregatingMergeTree
ORDER BY (tenant, meter, window, account, customer, reason, limit)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1,
    deduplicate_merge_projection_mode = 'rebuild'
