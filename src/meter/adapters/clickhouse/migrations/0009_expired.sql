-- What audits need to know of days of raw that were dropped. Written before a day is dropped, in one part.
--
-- Rows with an empty tenant are unbroken runs of a bucket's sequence, places [first, last]; `rows` is how often they had
-- been stored; with the meter 'repeats' and no places: what was also stored on a later day. The others have the usage that was granted. From when its rows are here, a day of raw counts no more.
CREATE TABLE IF NOT EXISTS expired
(
    day Date,
    bucket UInt32,
    generation UInt64,
    tenant String,
    meter String,
    first UInt64,
    last UInt64,
    rows UInt64,
    granted Int128
)
ENGINE = ReplacingMergeTree
ORDER BY (day, bucket, generation, tenant, meter, first)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1
