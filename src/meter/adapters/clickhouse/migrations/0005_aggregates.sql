-- What cannot be corrected by adding a difference: the least, greatest and latest value of each window, and which
-- dimensions there were, for counting distinct ones. Repeating a row changes nothing here.
--
-- grain, window: as in usage.
-- revision: a window is worked out anew, from raw, under the number of the manifest that corrected it; only rows of the
-- window's greatest revision count, see `revisions`. 0 until then.
-- latest: when it happened, its place, and the value.
-- manifest: marker rows as in usage.
CREATE TABLE IF NOT EXISTS aggregates
(
    tenant LowCardinality(String),
    grain UInt8,
    meter LowCardinality(String),
    window DateTime('UTC'),
    customer String,
    account String,
    revision UInt64,
    dimensions Array(Tuple(String, String)),
    least SimpleAggregateFunction(min, Int64),
    greatest SimpleAggregateFunction(max, Int64),
    latest SimpleAggregateFunction(max, Tuple(Int64, UInt32, UInt64, UInt64, Int64)),
    manifest SimpleAggregateFunction(max, UInt64),
    PROJECTION by_customer (SELECT * ORDER BY tenant, customer, grain, meter, window)
)
ENGINE = AggregatingMergeTree
ORDER BY (tenant, grain, meter, window, customer, account, revision, dimensions)
SETTINGS index_granularity = 1024, non_replicated_deduplication_window = 1000, fsync_after_insert = 1,
    fsync_part_directory = 1,
    deduplicate_merge_projection_mode = 'rebuild'
