-- What is held and ends later: reservations, blocks of supply, leases; and a bucket's own affairs. One operation a call.
-- KEYS  [1] the bucket's meta, for routing. Keys as in decide.lua; all of them are of this bucket.
-- ARGV  enforcer, connection, batch, answer window in ms, operation, bucket prefix, then by operation
--   settle    reservation or block, record type, quantity or nothing, 24 bytes of key
--             → used, released, now, generation, sequence, 1 if replayed │ 'gone' │ 'much', held │ 'reused'
--   renew     lease, ttl, account, epoch       → lease │ 'stale', stored epoch │ 'gone'
--   end       lease, 1 to unbind               → generation, sequence │ 'gone'
--   list      level, expiry, id, most          → leases
--   project   account, epoch                   → stored epoch
--   tick                                       → records written, present generation
--   tell     generation, sequence of a place that existed → 'known', or 'told' with a GENERATION record
--   fence                                      → the last batch of this enforcer that ran here, -1 if none; from now on
--                                                batches of its older connections are refused
--   correct   acknowledged, 1 if certain, corrections → outcomes, see correct.lua
--   slots     levels                           → generation, last sequence, now, level states
--   repair    body, then for each counter: limit, period, change of used, of held
--                                              → places (from 0) of those that were there and are changed
--   seats     generation, sequence, body, then for each limit: limit, change of leases
--                                              → 1, or 0 after an adjustment beyond that place
--   counters                                   → generation, last sequence, level states, (limit, leases) pairs
-- A lease is returned as id, holder, started, expires, body. 'lost' and 'fenced' as single strings for any operation.
local REAPED_AT_ONCE = @REAPED@

local function number(text) return format('%.0f', text) end

local function shown(id, l) return {id, l.holder, number(l.started), number(l.expires), l.body} end

local function store_lease(id, l)
  local score = number(l.expires)
  call('HSET', prefix .. 'l', id, cmsgpack.pack({l.suffixes, l.mode, l.holder, l.started, l.expires, l.body, l.seats}))
  call('ZADD', prefix .. 'q', score, 'L' .. id)
  for _, suffix in ipairs(l.suffixes) do
    call('ZADD', prefix .. 'i:' .. suffix, score, id)
    if l.mode ~= FLOATING then
      call('ZADD', prefix .. 'u:' .. suffix .. ':' .. l.holder, score, id)
      holder_ends(suffix, l.holder)
    end
  end
end

-- Turns `used` of a reservation into usage and gives back the rest, in the periods and grants that held it.
local function unhold(id, raw, kind, used, whole)
  local r = cmsgpack.unpack(raw)
  local granted, body, chains = r[2], r[3], r[4]
  -- What becomes of a block of supply is reported within its lifetime, hence in its period.
  local at = r[5] and min(now, r[1] - @GRACE@ - 1) or now
  local entries, overage, states = {}, 0, {}
  local function effect(limit, period, use, held)
    local n = #entries
    entries[n + 1], entries[n + 2], entries[n + 3], entries[n + 4] = limit, period, use, held
  end
  for _, chain in ipairs(chains) do
    local left = used
    for _, h in ipairs(chain) do
      local suffix, code, limit, over, period, amount, width = h[1], h[2], h[3], h[4], h[5], h[6], h[7]
      local use = min(left, amount)
      left = left - use
      if over then overage = overage + use end
      local state = states[suffix]
      if not state then
        local n
        state, n = values_of(call('GET', prefix .. 's:' .. suffix) or '')
        state.n = n
        states[suffix] = state
      end
      -- A rebuild after a loss makes no counters of limits that nobody has any more.
      local p = 3
      while p < state.n and state[p] ~= code do p = p + 1 + WIDTH[state[p] % 8] end
      if p >= state.n then
        effect(limit, period, use, -amount)
      elseif code % 8 == COUNT_F then
        effect(limit, period, use, -amount)
        if state[p + 1] == period then
          state[p + 4] = state[p + 4] - amount
          state[p + 3] = state[p + 3] + use
          if h[8] > 0 and use > 0 then
            local before, money = state[p + 6], state[p + 6] + use * h[8]
            local rest = math.fmod(money, h[9])
            local spent = (money - rest) / h[9]
            state[p + 6] = rest
            state[p + 5] = state[p + 5] + spent
            if spent ~= 0 or rest ~= before then effect(limit + @SIDE@, period, spent, rest - before) end
          end
        end
      else
        turn(state, p, code % 8, floor(now / width))
        state[p + 2] = state[p + 2] - amount
        effect(limit, 0, 0, -amount)
        if use > 0 then
          local k = p + 3 + state[p + 1] % RING_COUNT[code % 8]
          state[k] = state[k] + use
          effect(limit, state[p + 1], use, 0)
        end
      end
    end
  end
  local sequence = append(body, effects_of(kind, at, used, overage, whole and 1 or 0, used, granted, entries))
  for suffix, state in pairs(states) do
    if state.n > 0 then call('SET', prefix .. 's:' .. suffix, pack(doubles(state.n), unpack(state, 1, state.n))) end
  end
  call('HDEL', prefix .. 'v', id)
  call('ZREM', prefix .. 'q', 'R' .. id)
  return sequence, granted, at
end

-- Answers that are asked for one by one.
local function remembered(name) return call('HGET', answers_now, name) or call('HGET', answers_before, name) end
local function remember(name, value, at)
  if at < names.window * window_ms then
    call('HSET', answers_before, name, value)
    call('PEXPIRE', answers_before, format('%.0f', 3 * window_ms))
  else
    call('HSET', answers_now, name, value)
    age_answers()
  end
end

local operations = {correct = correct, slots = slots}

function operations.settle(id, kind, quantity, key)
  local name = sub(key, 1, 16)
  local found = remembered(name)
  if found then
    if sub(found, 1, 8) ~= sub(key, 17) then return {'reused'} end
    return {sub(found, 9), '1'}
  end
  local raw = call('HGET', prefix .. 'v', id)
  if not raw then return {'gone'} end
  local r = cmsgpack.unpack(raw)
  if r[1] <= now then return {'gone'} end
  local used = quantity == '' and r[2] or tonumber(quantity)
  if used > r[2] then return {'much', number(r[2])} end
  local sequence, granted, at = unhold(id, raw, tonumber(kind), used, quantity == '')
  local reply = packed({used, granted - used, at, generation, sequence})
  remember(name, sub(key, 17) .. reply, at)
  return {reply, '0'}
end

function operations.renew(id, ttl, account, epoch)
  local stored = tonumber(call('GET', prefix .. 'e:' .. account) or 0)
  if stored ~= tonumber(epoch) then return {'stale', number(stored)} end
  local l = lease_of(id)
  if not l or l.expires <= now then return {'gone'} end
  l.expires = now + tonumber(ttl)
  store_lease(id, l)
  return shown(id, l)
end

operations['end'] = function(id, unbind)
  local l = lease_of(id)
  if not l then return {'gone'} end
  if unbind == '1' then
    for _, suffix in ipairs(l.suffixes) do call('HDEL', prefix .. 'n:' .. suffix, l.holder) end
  end
  if l.expires <= now then
    if unbind == '1' then stand_up(id, l, @LEASE_EXPIRED@, l.expires, true) end
    return {'gone'}
  end
  return {number(generation), number(stand_up(id, l, @LEASE_END@, now, unbind == '1'))}
end

function operations.list(suffix, expiry, id, most)
  local out, from = {}, tonumber(expiry)
  local first = from > now and number(from) or '(' .. number(now)
  local flat = call('ZRANGEBYSCORE', prefix .. 'i:' .. suffix, first, '+inf', 'WITHSCORES')
  for i = 1, #flat, 2 do
    local score = tonumber(flat[i + 1])
    if #out == tonumber(most) then break end
    if score > from or bytes_before(id, flat[i]) then out[#out + 1] = shown(flat[i], lease_of(flat[i])) end
  end
  return out
end

function operations.project(account, epoch)
  local key = prefix .. 'e:' .. account
  local stored, new = tonumber(call('GET', key) or 0), tonumber(epoch)
  if new > stored then
    call('SET', key, number(new))
    stored = new
  end
  return {number(stored)}
end

function operations.tick()
  local written = flush_denials()
  local due = call('ZRANGEBYSCORE', prefix .. 'q', '-inf', number(now), 'LIMIT', 0, REAPED_AT_ONCE)
  for _, member in ipairs(due) do
    local id = sub(member, 2)
    if sub(member, 1, 1) == 'L' then
      local l = lease_of(id)
      stand_up(id, l, @LEASE_EXPIRED@, l.expires)
    else
      local raw = call('HGET', prefix .. 'v', id)
      local r = cmsgpack.unpack(raw)
      -- Nobody has told what was used of a block: all of it counts.
      if r[5] then unhold(id, raw, @UNACCOUNTED@, r[2]) else unhold(id, raw, @HOLD_EXPIRED@, 0) end
    end
  end
  if written + #due == 0 then
    -- connections of enforcers that are gone
    local flat = call('HGETALL', prefix .. 'f')
    for i = 1, #flat, 2 do
      local _, _, seen = unpack_('<ddd', flat[i + 1])
      if now - seen > 86400000 then call('HDEL', prefix .. 'f', flat[i]) end
    end
  end
  return {number(written + #due), number(generation)}
end

function operations.counters()
  local states, seats = {}, {}
  for _, suffix in ipairs(call('SMEMBERS', prefix .. 'k')) do
    states[#states + 1] = call('GET', prefix .. 's:' .. suffix)
  end
  local flat = call('HGETALL', prefix .. 'l')
  for i = 2, #flat, 2 do
    for _, limit in ipairs(parse_lease(flat[i]).seats) do
      local name = number(limit)
      seats[name] = (seats[name] or 0) + 1
    end
  end
  local pairs_ = {}
  for limit, held in pairs(seats) do
    pairs_[#pairs_ + 1] = limit
    pairs_[#pairs_ + 1] = number(held)
  end
  local last = -1
  local info = call('XINFO', 'STREAM', prefix .. 'o')
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      local gen, sequence = match(info[i + 1], '^(%d+)%-(%d+)$')
      if tonumber(gen) == generation then last = tonumber(sequence) end
    end
  end
  return {number(generation), number(last), states, pairs_}
end

function operations.repair(body, ...)
  local wanted, done, entries, states = {...}, {}, {}, {}
  for _, suffix in ipairs(call('SMEMBERS', prefix .. 'k')) do
    local state, n = values_of(call('GET', prefix .. 's:' .. suffix))
    local p, dirty = 3, false
    while p <= n do
      local family, limit = state[p] % 8, floor(state[p] / 8)
      for i = 1, #wanted, 4 do
        if tonumber(wanted[i]) == limit then
          local period, used, held = tonumber(wanted[i + 1]), tonumber(wanted[i + 2]), tonumber(wanted[i + 3])
          local there = true
          if family == COUNT_F and state[p + 1] == period then
            state[p + 3] = state[p + 3] + used
            state[p + 4] = state[p + 4] + held
          elseif family == RING24_F and period == 0 and used == 0 then
            state[p + 2] = state[p + 2] + held
          elseif family == RING24_F and period > 0 and held == 0 and period <= state[p + 1] and period > state[p + 1] - RING_COUNT[family] then
            local k = p + 3 + period % RING_COUNT[family]
            state[k] = state[k] + used
          else
            there = false
          end
          if there then
            local m = #entries
            entries[m + 1], entries[m + 2], entries[m + 3], entries[m + 4] = limit, period, used, held
            done[#done + 1] = number((i - 1) / 4)
            dirty = true
          end
        end
      end
      p = p + 1 + WIDTH[family]
    end
    if dirty then states[suffix] = pack(doubles(n), unpack(state, 1, n)) end
  end
  if #done > 0 then append(body, effects_of(@REPAIR@, now, 0, 0, 0, 0, 0, entries)) end
  for suffix, packed_state in pairs(states) do call('SET', prefix .. 's:' .. suffix, packed_state) end
  return done
end

-- Tells the ledger what the leases are, as compared at a place; once, whoever compares at the same time.
function operations.seats(compared_generation, compared, body, ...)
  local last, entries, wanted = call('GET', prefix .. 'y'), {}, {...}
  if last then
    local in_generation, sequence = unpack_('<dd', last)
    local before = tonumber(compared_generation)
    if in_generation > before or (in_generation == before and sequence > tonumber(compared)) then return {'0'} end
  end
  for i = 1, #wanted, 2 do
    local m = #entries
    entries[m + 1], entries[m + 2], entries[m + 3], entries[m + 4] = tonumber(wanted[i]), 0, 0, tonumber(wanted[i + 1])
  end
  local sequence = append(body, effects_of(@REPAIR@, now, 0, 0, 0, 1, 0, entries))
  call('SET', prefix .. 'y', pack('<dd', generation, sequence))
  return {'1'}
end

-- Somebody was answered from a place of an earlier generation that its end, as it is told in the outbox, does not have.
function operations.tell(of, sequence)
  if tonumber(of) >= generation then return {'known'} end
  local told = call('HGET', prefix .. 'x', of)
  if told and tonumber(told) >= tonumber(sequence) then return {'known'} end
  append(@NOBODY@, effects_of(@GENERATION@, now, 0, 0, 0, tonumber(sequence), tonumber(of), {}))
  call('HSET', prefix .. 'x', of, sequence)
  return {'told'}
end

function operations.fence()
  local raw = call('HGET', prefix .. 'f', enforcer)
  local last = -1
  if raw then
    local _, ran = unpack_('<dd', raw)
    last = ran
  end
  batch = last
  return {number(last)}
end

local READS = {list = true, counters = true, slots = true}

function hold(ARGV)
  begin(ARGV)
  at_bucket(ARGV[6])
  if not enter(call('MGET', names.meta@WHOLE@)[1]) then return {'lost'} end
  if fenced() then return {'fenced'} end
  local reply = operations[ARGV[5]](unpack(ARGV, 7))
  if not READS[ARGV[5]] then
    mark_batch()
    if meta.dirty then call('SET', names.meta, packed_meta()) end
  end
  return reply
end
