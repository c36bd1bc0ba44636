-- Three more types of records: a block of supply that was handed out (16), what was used of it (17), and what nobody told
-- of (18). The first is like a hold, the others are about somebody's usage.
ALTER TABLE raw
    MODIFY COLUMN type UInt8
        MATERIALIZED toUInt8(if(whole AND effects[2] BETWEEN 1 AND 18, effects[2], 0)),
    MODIFY COLUMN flaw String MATERIALIZED multiIf(
        NOT whole, 'effects',
        effects[1] != 1, 'version',
        type = 0, 'type',
        NOT isValidJSON(body), 'body',
        type IN (1, 2, 4, 7, 8, 9, 11, 12, 13, 17, 18) AND (empty(who.t) OR empty(who.a) OR empty(who.c) OR empty(who.m)), 'body',
        NOT (effects[3] BETWEEN 0 AND 4294967295000) OR NOT (happened BETWEEN 0 AND 4294967295000), 'time',
        '')
