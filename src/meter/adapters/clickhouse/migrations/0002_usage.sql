-- Usage by quarter hour of the event's time. Sums are 128 bits wide: a thousand quantities of 2^53 exceed 64.
--
-- adjusted: 1970 for usage. Else the sealed window that the row's `adjustment` corrects; `window` is when that was done.
--
-- Not partitioned, on purpose: one insert is one part, so a slice is added whole or not at all.
-- manifest: each slice also adds a marker row per bucket (tenant '', customer = the bucket) with its number;
-- rows of one key merge to the greatest number. Same part, same instant: the marker tells whether a slice was
-- added before a crash.
CREATE TABLE IF NOT EXISTS usage
(
    tenant LowCardinality(String),
    account String,
    meter LowCardinality(String),
    window DateTime('UTC'),
    customer String,
    dimensions Array(Tuple(String, String)),
    adjusted DateTime('UTC'),
    quantity SimpleAggregateFunction(sum, Int128),
    events SimpleAggregateFunction(sum, Int64),
    overage SimpleAggregateFunction(sum, Int128),
    denied_quantity SimpleAggregateFunction(sum, Int128),
    denied_events SimpleAggregateFunction(sum, UInt64),
    adjustment SimpleAggregateFunction(sum, Int128),
    manifest SimpleAggregateFunction(max, UInt64),
    PROJECTION by_customer (SELECT * ORDER BY tenant, customer, meter, window)
)
ENGINE = AggregatingMergeTree
ORDER BY (tenant, account, meter, window, customer, dimensions, adjusted)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1,
    deduplicate_merge_projection_mode = 'rebuild'
