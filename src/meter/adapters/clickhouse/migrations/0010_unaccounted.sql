-- unaccounted: blocks of supply that were handed out and never returned; no usage.
ALTER TABLE usage ADD COLUMN IF NOT EXISTS unaccounted SimpleAggregateFunction(sum, Int128) AFTER adjustment
