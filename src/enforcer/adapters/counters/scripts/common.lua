-- Shared by decide and hold: time, numbers, one bucket's meta, outbox, remembered answers. Texts between @ signs are filled
-- in from enforcer.core.program, enforcer.core.rules and meter.core.records when the library is loaded.
-- All numbers are doubles; integers are exact up to 2^53 - 1.
-- What is local here outlives a call: it may only hold what can be made again from a call's arguments and the data.
local call, pcall_ = redis.call, redis.pcall
local pack, unpack_, concat = struct.pack, struct.unpack, table.concat
local floor, ceil, min, max = math.floor, math.ceil, math.min, math.max
local rep, sub, format, match, byte, find = string.rep, string.sub, string.format, string.match, string.byte, string.find
local MAX, VERSION = 9007199254740991, @VERSION@

local function read_clock()
  @CLOCK@
  return CLOCK
end

local formats = {}
local function doubles(n)
  local f = formats[n]
  if not f then f = '<' .. rep('d', n) formats[n] = f end
  return f
end

local function packed(values) return pack(doubles(#values), unpack(values)) end

-- The values of a packed string, and how many they are (the table's last element is struct's own position).
local function values_of(raw)
  local n = #raw / 8
  return {unpack_(doubles(n), raw)}, n
end

-- Slots: families, their widths, and the rings' counts.
local WIDTH = {@FIELDS@}
local RING_COUNT = {@RING_SLOTS@}
local COUNT_F, BUCKET_F, RING10_F, RING24_F = @FAMILIES@

-- Of the call: who asks, on which of its connections, its number, how long answers are remembered, and when it came.
local enforcer, connection, batch, window_ms, clock
local function begin(arguments)
  enforcer, connection, batch = arguments[1], tonumber(arguments[2]), tonumber(arguments[3])
  window_ms, clock = tonumber(arguments[4]), read_clock()
end

-- Meta of a bucket: version, generation, last time, second of the pending denials (0: none), then the run id of the
-- server that the generation was opened on. On another one the bucket is closed: its data may be older than its records.
local prefix, outbox, now, meta, generation, id_pattern, before_sequence

-- Answers by 16 bytes of key: the parameters' fingerprint, then the answer; nothing behind it marks a denial. Nobody looks
-- at a window after two of them: the time to live, which each process of the server sets once, only collects garbage.
local answers_now, answers_before

-- What of a bucket stays the same for long, by prefix: names of its keys.
local names_of = {}
local names
local function name_keys(bucket_prefix)
  names = {
    meta = bucket_prefix .. 'm', outbox = bucket_prefix .. 'o', fences = bucket_prefix .. 'f',
    states = bucket_prefix .. 'k', window = -1, now = '', before = '', ageing = '',
  }
  names_of[bucket_prefix] = names
end
local function enter_window()
  local window = floor(now / window_ms)
  if window ~= names.window or window_ms ~= names.window_ms then
    names.window, names.window_ms = window, window_ms
    names.now = prefix .. 'r:' .. format('%.0f', window)
    names.before = prefix .. 'r:' .. format('%.0f', window - 1)
  end
  answers_now, answers_before = names.now, names.before
end
local function age_answers()
  if names.ageing == answers_now then return end
  call('PEXPIRE', answers_now, format('%.0f', 3 * window_ms))
  names.ageing = answers_now
end

local function at_bucket(bucket_prefix)
  prefix, names = bucket_prefix, names_of[bucket_prefix]
  if not names then name_keys(bucket_prefix) end
  outbox = names.outbox
end

-- Reads the meta of the bucket that we are at. False if it is closed.
local function enter(raw)
  if not raw or sub(raw, 33) ~= '@RUN@' then
    names.ageing = ''
    return false
  end
  local _, gen, last, denials = unpack_('<dddd', raw)
  meta = {last = last, denials = denials, dirty = false}
  if gen ~= generation then
    generation = gen
    id_pattern = format('%.0f-*', generation)
    before_sequence = #id_pattern
  end
  now = max(clock, last)
  if now > last then meta.last = now meta.dirty = true end
  enter_window()
  return true
end

local function packed_meta() return pack('<dddd', VERSION, generation, meta.last, meta.denials) .. '@RUN@' end

-- The sequence in a stream's id of this generation.
local function sequence_of(id) return tonumber(sub(id, before_sequence)) end

local function append(body, effects)
  return sequence_of(call('XADD', outbox, id_pattern, 'b', body, 'e', effects))
end

-- A connection that was replaced may not write any more: a batch of an older connection is refused, and a newer one
-- finds here what ran. Value: connection, last batch, time.
local function fenced()
  local raw = call('HGET', names.fences, enforcer)
  return raw and unpack_('<d', raw) > connection
end
local function mark_batch()
  call('HSET', names.fences, enforcer, pack('<ddd', connection, batch, now))
end

local function bytes_before(a, b)
  for i = 1, min(#a, #b) do
    local x, y = a:byte(i), b:byte(i)
    if x ~= y then return x < y end
  end
  return #a < #b
end

-- Denials of seconds that are over become one record for each reason and limit.
local function flush_denials()
  local second = meta.denials
  if second == 0 or second >= floor(now / 1000) then return 0 end
  local flat = call('HGETALL', prefix .. 'd')
  local names, pending = {}, {}
  for i = 1, #flat, 2 do names[#names + 1] = flat[i] pending[flat[i]] = flat[i + 1] end
  table.sort(names, bytes_before)
  for _, name in ipairs(names) do
    local count, quantity = unpack_('<dd', pending[name])
    local reason, limit = match(name, ':(%d+):(%d+)$')
    append(sub(pending[name], 17), pack(doubles(9), @RECORD_VERSION@, @DENIAL@, second * 1000, 0, 0, tonumber(reason),
      count, quantity, tonumber(limit)))
  end
  call('DEL', prefix .. 'd')
  meta.denials = 0
  meta.dirty = true
  return #names
end

local function effects_of(kind, at, granted, overage, reason, quantity, extra, entries)
  local out = {@RECORD_VERSION@, kind, at, granted, overage, reason, 1, quantity, extra}
  for i = 1, #entries do out[9 + i] = entries[i] end
  return packed(out)
end

-- Removes from a ring what has left the window by `newest`.
local function turn(state, p, family, newest)
  local count, last = RING_COUNT[family], state[p + 1]
  if newest <= last then return end
  for number = max(last + 1, newest - count + 1), newest do state[p + 3 + number % count] = 0 end
  state[p + 1] = newest
end

-- Leases: a seat is given back here and nowhere else, with its record.
local FLOATING = 1

local function parse_lease(raw)
  local l = cmsgpack.unpack(raw)
  return {suffixes = l[1], mode = l[2], holder = l[3], started = l[4], expires = l[5], body = l[6], seats = l[7]}
end

local function lease_of(id)
  local raw = call('HGET', prefix .. 'l', id)
  return raw and parse_lease(raw)
end

local function holder_ends(suffix, holder)
  local key = prefix .. 'u:' .. suffix .. ':' .. holder
  local last = call('ZREVRANGE', key, 0, 0, 'WITHSCORES')
  if last[1] then
    call('ZADD', prefix .. 'h:' .. suffix, last[2], holder)
  else
    call('ZREM', prefix .. 'h:' .. suffix, holder)
  end
end

local function stand_up(id, l, kind, at, unbound)
  local entries = {}
  for _, limit in ipairs(l.seats) do
    local n = #entries
    entries[n + 1], entries[n + 2], entries[n + 3], entries[n + 4] = limit, 0, 0, -1
  end
  local sequence = append(l.body, effects_of(kind, at, 0, 0, 0, unbound and 1 or 0, l.started, entries))
  call('HDEL', prefix .. 'l', id)
  call('ZREM', prefix .. 'q', 'L' .. id)
  for _, suffix in ipairs(l.suffixes) do
    call('ZREM', prefix .. 'i:' .. suffix, id)
    if l.mode ~= FLOATING then
      call('ZREM', prefix .. 'u:' .. suffix .. ':' .. l.holder, id)
      holder_ends(suffix, l.holder)
    end
  end
  return sequence
end
