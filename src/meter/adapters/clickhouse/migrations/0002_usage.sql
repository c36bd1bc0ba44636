-- Usage by the event's time. Sums are 128 bits wide: a thousand quantities of 2^53 exceed 64.
--
-- grain: 0 for a quarter hour, 1 for an hour, 2 for a day, 3 for a month, all of UTC; `window` is where it begins. A slice
-- adds every sum to all four, in one part, so that they cannot part; a report reads each instant from one of them.
-- adjusted: 1970 for usage. Else the sealed window that the row's `adjustment` corrects; `window` is when that was done.
--
-- Not partitioned, on purpose: one insert is one part, so a slice is added whole or not at all.
-- manifest: each slice also adds a marker row per bucket (tenant '', customer = the bucket) with its number;
-- rows of one key merge to the greatest number. Same part, same instant: the marker tells whether a slice was
-- added before a crash.
--
-- Ordered for a tenant's page (a meter over a time, all customers), and once more for a customer's page.
CREATE TABLE IF NOT EXISTS usage
(
    tenant LowCardinality(String),
    grain UInt8,
    meter LowCardinality(String),
    window DateTime('UTC'),
    customer String,
    account String,
    dimensions Array(Tuple(String, String)),
    adjusted DateTime('UTC'),
    quantity SimpleAggregateFunction(sum, Int128),
    events SimpleAggregateFunction(sum, Int64),
    overage SimpleAggregateFunction(sum, Int128),
    denied_quantity SimpleAggregateFunction(sum, Int128),
    denied_events SimpleAggregateFunction(sum, UInt64),
    adjustment SimpleAggregateFunction(sum, Int128),
    manifest SimpleAggregateFunction(max, UInt64),
    PROJECTION by_customer (SELECT * ORDER BY tenant, customer, grain, meter, window)
)
ENGINE = AggregatingMergeTree
ORDER BY (tenant, grain, meter, window, customer, account, dimensions, adjusted)
SETTINGS index_granularity = 1024, non_replicated_deduplication_window = 1000, fsync_after_insert = 1,
    fsync_part_directory = 1,
    deduplicate_merge_projection_mode = 'rebuild'
