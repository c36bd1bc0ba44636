-- What a version has to know to work on this schema. A migration that takes something away from older versions says so in
-- a line `-- needs: <its number>`; while none does, older versions go on beside newer ones.
ALTER TABLE migrations ADD COLUMN IF NOT EXISTS needs UInt32 DEFAULT 0
