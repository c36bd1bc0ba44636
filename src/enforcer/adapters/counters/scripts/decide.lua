-- Decides checks, any number of buckets and groups in one call; each check is one atomic step with its record.
-- All that a bucket's checks need is read before the first is decided, and what they change is written behind the last,
-- but for records, which are appended one by one.
-- KEYS  none: each bucket's part is refused alone where its slot is not here. Keys are built from prefixes: m meta (read, written),
--       o outbox (appended), f fences, e:<account> epochs (read), s:<level> states (read, written), k set of levels
--       with a state, r:<window> answers, d pending denials, v reservations, l leases, q due index, i h u n <level> seats,
--       x the last place that existed, by earlier generation, as the outbox tells it
--       j marks of journals, g:<enforcer>:<connection> what batches granted whose answers may be asked for (written)
-- ARGV  enforcer, connection, batch, answer window in ms, number of buckets; for each bucket
--         prefix, number of programs, number of checks, slot to keep what was granted in or 0, the packed programs
--         for each check
--           packed head (program from 0, mode, op, 1 if the next check is of the same group, quantity, ttl, 8 bytes of
--           fingerprint), 16 bytes of the idempotency key's name or nothing, body, and for ops other than CHECK: id,
--           holder; for JOURNALED these are the journal, and packed: number in it, the mark that it comes after, then if
--           the check may have run before: connection, slot, batch, place, and behind them the enforcer
-- Returns for each check
--   if it was decided, 8 bytes (in answers that are remembered the fingerprint), then doubles: reason, granted, overage,
--   shadow, now, generation, sequence, expiry, number of entries, seven doubles an entry; behind them the id
--   if it was decided before, a list of that and 1
--   else a list of one string, doubles: status, then
--     1 epoch is stale: the stored one    2 slice is stale: now    3 key reused    4 failed: text behind it
--     5 fenced    6 bucket lost    7 bucket elsewhere, or not all of it here    8 out of turn: the journal's mark
-- The reply as it stands now, not packed yet: [8] is the sequence, [9] the expiry.
local function answer(check, drawn)
  local out = {
    0, check.reason, check.granted, check.overage, check.shadow and 1 or 0, now, generation, -1, 0, 0,
  }
  out[10] = entries_of(check.program, drawn, check.denied, check.holder, out)
  return out
end

-- Ends what has expired at the levels of a lease that begins: by the records, too, no seat is given before it is back.
local function clear_seats(program)
  for _, suffix in ipairs(program.suffixes) do
    local over = call('ZRANGEBYSCORE', prefix .. 'i:' .. suffix, '-inf', format('%.0f', now), 'LIMIT', 0, @REAPED@)
    for _, id in ipairs(over) do
      local l = lease_of(id)
      stand_up(id, l, @LEASE_EXPIRED@, l.expires)
    end
  end
end

local function sit(check)
  local program, expires = check.program, now + check.ttl
  local mode, seats = FLOATING, {}
  for _, chain in ipairs(program.chains) do
    for _, view in ipairs(chain) do
      if view[1] == SEATS then
        if #seats == 0 then mode = view[10] end
        seats[#seats + 1] = floor(view[2] / 65536)
      end
    end
  end
  local lease, holder, score = check.id, check.holder, format('%.0f', expires)
  call('HSET', prefix .. 'l', lease, cmsgpack.pack({program.suffixes, mode, holder, now, expires, check.body, seats}))
  call('ZADD', prefix .. 'q', score, 'L' .. lease)
  for _, suffix in ipairs(program.suffixes) do
    call('ZADD', prefix .. 'i:' .. suffix, score, lease)
    if mode ~= FLOATING then
      call('ZADD', prefix .. 'u:' .. suffix .. ':' .. holder, score, lease)
      local last = call('ZREVRANGE', prefix .. 'u:' .. suffix .. ':' .. holder, 0, 0, 'WITHSCORES')
      call('ZADD', prefix .. 'h:' .. suffix, last[2], holder)
    end
    if mode == NODE_LOCKED then call('HSETNX', prefix .. 'n:' .. suffix, holder, format('%.0f', now)) end
  end
end

local pending_denials = {}

-- Answers of this window and the one before, by name: those that were asked for, and those given in this call.
local answers, given, given_count = {}, {}, 0
local function remember(name, value)
  answers[name] = value
  given[given_count + 1], given[given_count + 2] = name, value
  given_count = given_count + 2
end

-- Counts parts of the arguments that are of one bucket, so that what was found out in one is not taken for another's.
local part = 0

-- The reply to a check of a program that does not count any more; nothing where it does.
local function stale_of(program)
  if program.fine_in == part then return end
  local stored = tonumber(raws[program.epoch_key] or 0)
  if stored ~= program.epoch then return {pack('<dd', OUT.EPOCH, stored)} end
  if now < program.start or (program.stop ~= 0 and now >= program.stop) then return {pack('<dd', OUT.SLICE, now)} end
  program.fine_in = part
end

local function failed(problem)
  return {pack('<d', OUT.FAILED) .. (type(problem) == 'table' and problem.err or tostring(problem))}
end

local function deny(check)
  local limit = 0
  for c = 1, #check.denied do
    local chain = check.program.chains[c]
    if check.denied[c] and not chain.shadow then
      if #chain > 0 then limit = floor(chain[1][2] / 65536) end
      break
    end
  end
  local name = check.program.suffix .. format(':%.0f:%.0f', check.reason, limit)
  local pending = pending_denials[name]
  if not pending then
    pending = {0, 0, check.program.denial}
    pending_denials[name] = pending
  end
  pending[1], pending[2] = pending[1] + 1, min(pending[2] + check.quantity, MAX)
end

-- Why a bucket could not be read. In a cluster its slot may be on another node, or on its way there.
local function unread(problem)
  local reply = failed(problem)
  for _, words in ipairs({@ELSEWHERE@}) do
    if find(reply[1], words, 1, true) then return {pack('<d', OUT.ELSEWHERE)} end
  end
  return reply
end

local function whole(group, place, reply)
  local out = {}
  for k = 1, #group do
    out[k] = k == place and reply or failed('not decided: another item of the batch was not')
  end
  return out
end

-- What the check of a journaled use had counted itself: found by its key, or by the batch that it travelled in.
local function counted_before(check)
  if check.key ~= '' then
    local found = answers[check.key]
    if found and sub(found, 1, 8) ~= check.finger then return 0 end
    if found and #found > 8 then return (unpack_('<d', found, 17)) end
    check.name = check.key
  elseif #check.holder > 16 then
    local _, _, old, slot, number, place, at_ = unpack_('<dddddd', check.holder)
    local who = sub(check.holder, at_)
    if who ~= enforcer then
      -- Its enforcer is gone; what it sent last may still arrive, but may not run any more.
      local raw = call('HGET', prefix .. 'f', who)
      local newest, ran = -1, -1
      if raw then newest, ran = unpack_('<dd', raw) end
      if newest <= old then call('HSET', prefix .. 'f', who, pack('<ddd', old + 1, ran, now)) end
    end
    local raw = call('HGET', prefix .. 'g:' .. who .. format(':%.0f', old), format('%.0f', slot))
    if raw then
      local granted = values_of(raw)
      if granted[1] == number then return granted[1 + place] or 0 end
    end
  end
  return 0
end

-- Prepares the check of a use that was allowed while the server was away. Returns its reply if there is no more to do.
local function journaled(check)
  local program = check.program
  local mark = tonumber(call('HGET', prefix .. 'j', check.id) or 0)
  local number, after = unpack_('<dd', check.holder)
  check.number = number
  if mark < after or mark >= number then return {pack('<dd', OUT.TURN, mark)} end
  local stale = stale_of(program)
  if stale then return stale end
  if program.forced ~= 0 then return failed(REASONS[program.forced]) end
  local asked = check.quantity
  check.quantity = max(0, asked - counted_before(check))
  if check.quantity > 0 then return end
  local added = pcall_('XADD', outbox, id_pattern, 'b', check.body, 'e', effects_of(@EMERGENCY@, now, 0, 0, 0, asked, 0, {}))
  if type(added) == 'table' then return failed(added.err or 'no record could be written') end
  call('HSET', prefix .. 'j', check.id, format('%.0f', check.number))
  return packed({0, @ALLOWED@, 0, 0, 0, now, generation, sequence_of(added), 0, 0})
end

-- Decides a group: all of its checks or none. Returns their replies.
local function decide(group)
  if group[1].op == JOURNALED then
    local reply = journaled(group[1])
    if reply then return {reply} end
  end
  local replies, known = {}, {}
  for k = 1, #group do
    local check = group[k]
    if check.key ~= '' and check.mode ~= CHECK_ONLY and check.mode ~= PEEK and check.op ~= JOURNALED then
      check.name = check.key
      local found = answers[check.name]
      if found then
        if sub(found, 1, 8) ~= check.finger then return whole(group, k, {pack('<d', OUT.REUSED)}) end
        if #found == 8 then known[k] = true else replies[k] = {found, 1} end
      end
    end
  end
  for k = 1, #group do
    local stale = not replies[k] and stale_of(group[k].program)
    if stale then return whole(group, k, stale) end
  end
  undo, touched = {}, {}
  local granted = {}
  for k = 1, #group do
    local check = group[k]
    if not replies[k] then
      local program, mode = check.program, check.mode
      local read = mode == CHECK_ONLY or mode == PEEK
      local drawn, excess
      check.reason, check.granted, check.overage, check.shadow, drawn, check.denied, excess =
        evaluate(program, check.quantity, mode, check.holder)
      if check.granted == 0 then
        local reply = packed(answer(check))
        take_back()
        if not read then
          if not known[k] then deny(check) end
          if check.name then remember(check.name, check.finger) end
        end
        local out = {}
        for n = 1, #group do
          if n == k then out[n] = reply
          elseif type(replies[n]) == 'table' then out[n] = replies[n]
          else
            out[n] = packed({0, @BATCH_DENIED@, 0, 0, 0, now, generation, -1, 0, 0})
          end
        end
        return out
      end
      check.drawn = drawn
      if mode ~= PEEK then
        if excess and not fits(program, drawn) then
          take_back()
          return whole(group, k, failed('overflow'))
        end
        if check.op == RESERVE then check.holds = {} end
        check.effects = apply(check, drawn, check.holds)
      end
      if read then
        replies[k] = packed(answer(check, mode ~= PEEK and drawn or nil))
      else
        check.shown = answer(check, drawn)
        granted[#granted + 1] = k
      end
    end
  end
  if #granted == 0 then
    take_back()
    return replies
  end
  for n = 1, #granted do
    local k = granted[n]
    local check = group[k]
    local expires = ends(check)
    local id = expires > 0 and check.id or ''
    if check.op == SEAT then clear_seats(check.program) end
    local added = pcall_('XADD', outbox, id_pattern, 'b', check.body, 'e', packed(check.effects))
    if type(added) == 'table' then
      if n == 1 then take_back() end
      return whole(group, k, failed(added.err or 'no record could be written'))
    end
    if check.op == RESERVE then
      local block = check.mode == ALLOWANCE
      local gone = block and expires + @GRACE@ or expires
      call('HSET', prefix .. 'v', id, cmsgpack.pack({gone, check.granted, check.body, check.holds, block}))
      call('ZADD', prefix .. 'q', format('%.0f', gone), 'R' .. id)
    elseif check.op == SEAT then
      sit(check)
      check.shown = answer(check, check.drawn)
    elseif check.op == JOURNALED then
      call('HSET', prefix .. 'j', check.id, format('%.0f', check.number))
    end
    local shown = check.shown
    shown[8], shown[9] = sequence_of(added), expires
    local reply = packed(shown) .. id
    if check.name then remember(check.name, check.finger .. sub(reply, 9)) end
    replies[k] = reply
  end
  undo = {}
  for key, state in pairs(touched) do dirty[key] = state end
  return replies
end

-- Values of many keys, or of many fields of a hash: `found` gets them by key, false for those that are not there.
local MOST_AT_ONCE = 1000
local function read_all(found, keys, ...)
  for first = 1, #keys, MOST_AT_ONCE do
    local last = min(#keys, first + MOST_AT_ONCE - 1)
    local values
    if ... then values = call('HMGET', ..., unpack(keys, first, last)) else values = call('MGET', unpack(keys, first, last)) end
    for k = first, last do found[keys[k]] = values[k - first + 1] end
  end
end

-- The replies and how many they are, the arguments, the next of them, and how many checks of its bucket are left.
local out, filled, ARGV, at, left, programs = {}, 0, nil, 0, 0, {}

-- Small tables are emptied and used again: one that grows from nothing is allocated again and again.
local SMALL = 16
local large = false
local function emptied(table)
  for key in next, table do table[key] = nil end
  return table
end
local function renew()
  if large then
    states, raws, dirty, answers, given, programs = {}, {}, {}, {}, {}, {}
  else
    emptied(states) emptied(raws) emptied(dirty) emptied(answers) emptied(given) emptied(programs)
  end
  if next(unlisted) then unlisted = {} end
  if next(pending_denials) then pending_denials = {} end
  large = left > SMALL
end

-- Reads what the programs and the keys of a bucket's checks need. Returns why they are not decided, or nothing.
local function prepare(count)
  renew()
  given_count, part = 0, part + 1
  local keys, asked
  for n = 1, count do
    local program = program_of(ARGV[at + 3 + n])
    programs[n] = program
    if n == 1 then
      keys = program.reads
    else
      if n == 2 then
        local first = keys
        keys, asked = {}, {}
        for k = 1, #first do keys[k], asked[first[k]] = first[k], true end
      end
      for k = 2, #program.reads do
        local key = program.reads[k]
        if not asked[key] then
          asked[key] = true
          keys[#keys + 1] = key
        end
      end
    end
  end
  read_all(raws, keys)
  if not enter(raws[names.meta]) then return OUT.LOST end
  if fenced() then return OUT.FENCED end
  local wanted, n, first = {0}, 0, at + 4 + count
  for _ = 1, left do
    local name = ARGV[first + 1]
    if name ~= '' then
      n = n + 1
      wanted[n] = name
    end
    first = first + (byte(ARGV[first], 4) == CHECK and 3 or 5)
  end
  if n > 0 then
    read_all(answers, wanted, answers_now)
    local older, m = {0}, 0
    for k = 1, n do
      if not answers[wanted[k]] then
        m = m + 1
        older[m] = wanted[k]
      end
    end
    if m > 0 then read_all(answers, older, answers_before) end
  end
  flush_denials()
end

-- A check that is a group by itself. Returns its reply; nothing where `decide` has to look at it.
local function decide_alone(program, mode, quantity, finger, name, body)
  if not program.quick or mode == CHECK_ONLY or mode == PEEK or quantity < 1 then return end
  local found = name ~= '' and answers[name]
  if found then
    if sub(found, 1, 8) ~= finger then return {pack('<d', OUT.REUSED)} end
    if #found > 8 then return {found, 1} end
  end
  if program.fine_in ~= part then
    local stale = stale_of(program)
    if stale then return stale end
  end
  local reply, problem = quick(program, quantity, body, finger)
  if problem then return failed(problem) end
  if reply and name ~= '' then remember(name, reply) end
  return reply
end

-- Decides what is left of a bucket's checks. An error ends it behind the check that it is about.
local function decide_rest()
  local group
  while left > 0 do
    local program, mode, op, more, quantity, ttl, finger = unpack_('<HBBBddc8', ARGV[at])
    local name, body, id, holder = ARGV[at + 1], ARGV[at + 2], '', ''
    if op == CHECK then
      at = at + 3
    else
      id, holder = ARGV[at + 3], ARGV[at + 4]
      at = at + 5
    end
    left, program = left - 1, programs[program + 1]
    local reply
    if not group and more == 0 and op == CHECK then reply = decide_alone(program, mode, quantity, finger, name, body) end
    if reply then
      filled = filled + 1
      out[filled] = reply
    else
      group = group or {}
      -- All fields at once: a table that grows is allocated again and again.
      group[#group + 1] = {
        program = program, mode = mode, op = op, quantity = quantity, ttl = ttl, key = name, finger = finger,
        body = body, id = id, holder = holder, name = false, reason = 0, granted = 0, overage = 0, shadow = false,
        denied = false, drawn = false, effects = false, shown = false, holds = false, number = 0,
      }
      if more == 0 then
        local fine, replies = pcall(decide, group)
        if not fine then
          take_back()
          replies = whole(group, 1, failed(replies))
        end
        for k = 1, #group do out[filled + k] = replies[k] end
        filled, group = filled + #group, nil
      end
    end
  end
end

local function refuse_rest(reply)
  while left > 0 do
    filled, left = filled + 1, left - 1
    out[filled] = reply
    at = at + (byte(ARGV[at], 4) == CHECK and 3 or 5)
  end
end

-- Writes what the checks of a bucket have changed: all of it can be written, since it could be read.
local function write_all(keep, first)
  local values, n = {0, 0, 0, 0}, 0
  for key, state in next, dirty do
    local size = #state - 1
    values[n + 1], values[n + 2] = key, pack(formats[size] or doubles(size), unpack(state, 1, size))
    n = n + 2
    if unlisted[key] then call('SADD', names.states, unlisted[key]) end
  end
  for name, pending in pairs(pending_denials) do
    local raw = call('HGET', prefix .. 'd', name)
    local times, quantity = pending[1], pending[2]
    if raw then
      local before, much = unpack_('<dd', raw)
      times, quantity = times + before, min(quantity + much, MAX)
    end
    call('HSET', prefix .. 'd', name, pack('<dd', times, quantity) .. pending[3])
    meta.denials = floor(now / 1000)
    meta.dirty = true
  end
  if keep ~= '0' then
    local granted, key = {batch}, prefix .. 'g:' .. enforcer .. format(':%.0f', connection)
    for k = first + 1, filled do
      local reply = out[k]
      if type(reply) == 'table' then reply = reply[2] and reply[1] end
      granted[1 + k - first] = reply and unpack_('<d', reply, 17) or 0
    end
    call('HSET', key, keep, packed(granted))
    call('PEXPIRE', key, format('%.0f', 3 * window_ms))
  end
  if meta.dirty then
    values[n + 1], values[n + 2] = names.meta, packed_meta()
    n = n + 2
  end
  for k = 1, n, MOST_AT_ONCE do call('MSET', unpack(values, k, min(n, k + MOST_AT_ONCE - 1))) end
  if given_count > 0 then
    call('HSET', answers_now, unpack(given, 1, given_count))
    age_answers()
  end
  mark_batch()
end

local function decide_bucket()
  at_bucket(ARGV[at])
  local count, keep, first = tonumber(ARGV[at + 1]), ARGV[at + 3], filled
  left = tonumber(ARGV[at + 2])
  local read, closed = pcall(prepare, count)
  at = at + 4 + count
  if not read then return refuse_rest(unread(closed)) end
  if closed then return refuse_rest({pack('<d', closed)}) end
  while left > 0 do
    local fine, problem = pcall(decide_rest)
    if not fine then
      filled = filled + 1
      out[filled] = failed(problem)
    end
  end
  write_all(keep, first)
end

function decide_all(arguments)
  begin(arguments)
  out, filled, ARGV, at = {}, 0, arguments, 6
  for _ = 1, tonumber(ARGV[5]) do decide_bucket() end
  return out
end
