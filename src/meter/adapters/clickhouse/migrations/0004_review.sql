-- Records that a person has to look at: undecodable ones, and those too late for their generation.
-- Keyed by place and content: storing one again changes nothing.
CREATE TABLE IF NOT EXISTS review
(
    bucket UInt32,
    generation UInt64,
    seq UInt64,
    reason LowCardinality(String),
    body String CODEC(ZSTD(1)),
    effects Array(Float64) CODEC(ZSTD(1)),
    rest String CODEC(ZSTD(1)),
    seen DateTime('UTC') DEFAULT now('UTC')
)
ENGINE = ReplacingMergeTree
ORDER BY (bucket, generation, seq, reason, cityHash64(body, effects, rest))
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1
