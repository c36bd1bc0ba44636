-- Every record as it came, and what a query needs of it as typed columns. What must be
-- parsed is worked out once, on insert; what is one of the doubles is an alias.
--
-- body      the bytes of field b
-- effects   the doubles of field e; empty when its length is no multiple of 8, then `rest` has the bytes
-- adjusts   1 for a correction of a window that is sealed: it counts in the window of its own time
-- flaw      why the record cannot count; '' for a sound one. A flawed record keeps its place in the sequence.
--
-- Plain strings on purpose: LowCardinality made inserts 1.1 µs a record slower and saved nothing after ZSTD.
-- Keyed by place, so that FINAL sees a record once however often it was stored. Partitioned by the day of
-- storing, so that retention drops partitions.
CREATE TABLE IF NOT EXISTS raw
(
    bucket UInt32,
    generation UInt64 CODEC(ZSTD(1)),
    seq UInt64 CODEC(Delta, ZSTD(1)),
    ingested DateTime('UTC') DEFAULT now('UTC') CODEC(Delta, ZSTD(1)),
    body String CODEC(ZSTD(1)),
    effects Array(Float64) CODEC(ZSTD(1)),
    rest String CODEC(ZSTD(1)),
    whole UInt8 MATERIALIZED empty(rest) AND length(effects) >= 9 AND (length(effects) - 9) % 4 = 0
        AND arrayAll(x -> isFinite(x) AND abs(x) <= 9007199254740992 AND x = floor(x), effects),
    type UInt8 MATERIALIZED toUInt8(if(whole AND effects[2] BETWEEN 1 AND 15, effects[2], 0)),
    decided DateTime64(3, 'UTC') ALIAS
        fromUnixTimestamp64Milli(toInt64(if(whole AND effects[3] BETWEEN 0 AND 4294967295000, effects[3], 0)), 'UTC'),
    granted Int64 ALIAS toInt64(if(whole, effects[4], 0)),
    overage Int64 ALIAS toInt64(if(whole, effects[5], 0)),
    reason Int64 ALIAS toInt64(if(whole, effects[6], 0)),
    count Int64 ALIAS toInt64(if(whole, effects[7], 0)),
    quantity Int64 ALIAS toInt64(if(whole, effects[8], 0)),
    adjusts UInt8 ALIAS type IN (11, 12, 13) AND effects[9] = 1,
    who Tuple(t String, a String, c String, m String, at Int64, d Map(String, String))
        MATERIALIZED JSONExtract(body, 'Tuple(t String, a String, c String, m String, at Int64, d Map(String, String))')
        CODEC(ZSTD(1)),
    happened Int64 MATERIALIZED if(type IN (1, 4, 11, 12, 13) AND who.at != 0 AND NOT adjusts, who.at, toInt64(if(whole, effects[3], 0))) CODEC(T64, ZSTD(1)),
    flaw String MATERIALIZED multiIf(
        NOT whole, 'effects',
        effects[1] != 1, 'version',
        type = 0, 'type',
        NOT isValidJSON(body), 'body',
        type IN (1, 2, 4, 7, 8, 9, 11, 12, 13) AND (empty(who.t) OR empty(who.a) OR empty(who.c) OR empty(who.m)), 'body',
        NOT (effects[3] BETWEEN 0 AND 4294967295000) OR NOT (happened BETWEEN 0 AND 4294967295000), 'time',
        ''),
    window DateTime('UTC') MATERIALIZED toDateTime(if(flaw = '', intDiv(happened, 900000) * 900, 0), 'UTC')
)
ENGINE = ReplacingMergeTree
PARTITION BY toDate(ingested)
ORDER BY (bucket, generation, seq)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1
