-- How the number of live leases changes: +1 at a lease's start, -1 at its end, which for an expired one is its expiry.
--
-- grain: 0 for a change at its millisecond, 1 for the sum of a day (UTC), at its beginning. So what was held before a
-- report's range is read from a row per day, and changes only within it.
-- manifest: marker rows as in usage.
CREATE TABLE IF NOT EXISTS seats
(
    tenant LowCardinality(String),
    grain UInt8,
    meter LowCardinality(String),
    account String,
    customer String,
    at DateTime64(3, 'UTC'),
    delta SimpleAggregateFunction(sum, Int64),
    manifest SimpleAggregateFunction(max, UInt64),
    PROJECTION by_customer (SELECT * ORDER BY tenant, grain, customer, meter, at)
)
ENGINE = AggregatingMergeTree
ORDER BY (tenant, grain, meter, account, customer, at)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1,
    deduplicate_merge_projection_mode = 'rebuild'
