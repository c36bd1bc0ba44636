-- Writes into a bucket that is not open on this server process, if it still is as the writer believes. Whoever opens a
-- bucket or writes into it as well makes the others' writes void.
-- KEYS  [1] the bucket's meta
-- ARGV  bucket prefix, guard, its two values, then commands: number of words, words. Their keys are of this bucket.
--   begin  token, ms      the meta is missing, and nobody rebuilds, or whoever did has not moved for so long, or it is the
--                         same writer (a token's first 16 letters): from now on the rebuild is the token's
--                                                                                                        → 'there', 'busy'
--   own    token, ''      the meta is missing and the rebuild is the token's                             → 'there', 'busy'
--   after  place, run id  the meta says the run id, and the last record is at the place `g-s`            → 'moved'
-- Besides those of Redis there is the command HOLDER: a holder's leases, the holders, the holder: the last of the
-- former is the score in the latter.
-- Returns 'done', or why nothing was written.
@CLOCK@
local call = redis.call
call('MGET', KEYS[1], ARGV[1] .. '!') -- fails where only part of the bucket is here, on its way to another node
local prefix, guard, value, more = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local meta, mark = call('GET', prefix .. 'm'), prefix .. 'w'
if guard == 'after' then
  if not meta or string.sub(meta, 33) ~= more then return 'moved' end
  local last = '0-0'
  if call('EXISTS', prefix .. 'o') == 1 then
    local info = call('XINFO', 'STREAM', prefix .. 'o')
    for i = 1, #info, 2 do
      if info[i] == 'last-generated-id' then last = info[i + 1] end
    end
  end
  if last ~= value then return 'moved' end
else
  if meta then return 'there' end
  local owner = call('HGET', mark, 'token')
  if owner and owner ~= value then
    local seen = tonumber(call('HGET', mark, 'seen'))
    local same = string.sub(owner, 1, 16) == string.sub(value, 1, 16)
    if guard == 'own' or (not same and CLOCK - seen < tonumber(more)) then return 'busy' end
  elseif not owner and guard == 'own' then
    return 'busy'
  end
  call('HSET', mark, 'token', value, 'seen', string.format('%.0f', CLOCK))
end
local at = 5
while ARGV[at] do
  local n = tonumber(ARGV[at])
  if ARGV[at + 1] == 'HOLDER' then
    local last = call('ZREVRANGE', ARGV[at + 2], 0, 0, 'WITHSCORES')
    if last[1] then
      call('ZADD', ARGV[at + 3], last[2], ARGV[at + 4])
    else
      call('ZREM', ARGV[at + 3], ARGV[at + 4])
    end
  else
    call(unpack(ARGV, at + 1, at + n))
  end
  at = at + 1 + n
end
return 'done'
