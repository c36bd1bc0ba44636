-- Decides checks, any number of buckets and groups in one call; each check is one atomic step with its record.
-- KEYS  [1] the first bucket's meta, for routing. Keys of a bucket are built from its prefix: m meta (read, written),
--       o outbox (appended), f fences, e:<account> epochs (read), s:<level> states (read, written), k set of levels
--       with a state, r:<window> answers, d pending denials, v reservations, l leases, q due index, i h u n <level> seats,
--       x the last place that existed, by earlier generation, as the outbox tells it
--       j marks of journals, g:<enforcer>:<connection> what batches granted whose answers may be asked for (written)
-- ARGV  enforcer, connection, batch, answer window in ms, number of buckets; for each bucket
--         prefix, number of programs, number of checks, slot to keep what was granted in or 0; for each program
--           account, suffix, body of its denials, packed program, the suffix of each of its levels
--         for each check
--           packed head (program from 0, mode, op, 1 if the next check is of the same group, quantity, ttl),
--           16 bytes name and 8 bytes fingerprint of the idempotency key or nothing, body, and for ops other than
--           CHECK: id, holder; for JOURNALED these are the journal, and packed: number in it, the mark that it comes
--           after, then if the check may have run before: connection, slot, batch, place, and behind them the enforcer
-- Returns for each check doubles: status, then
--   0 decided, 7 decided before: reason, granted, overage, shadow, now, generation, sequence, expiry, number of
--     entries, seven doubles an entry; behind them the id
--   1 epoch is stale: the stored one    2 slice is stale: now    3 key reused    4 failed: text behind it
--   5 fenced    6 bucket lost    8 out of turn: the journal's mark
local OUT = {DECIDED = 0, EPOCH = 1, SLICE = 2, REUSED = 3, FAILED = 4, FENCED = 5, LOST = 6, REPLAYED = 7, TURN = 8}
local CHECK, RESERVE, SEAT, JOURNALED = 0, 1, 2, 3
local ENFORCE, CHECK_ONLY, BEST_EFFORT, RECORD_ONLY, PEEK = 1, 2, 3, 4, 5
local COUNT, ROLL, MONEY, THROTTLE, BUCKET, RING10, RING24, SEATS = @SHAPES@
local EXTRA = {1, 5, 4, 3, 1, 1, 1, 2}
local QUOTA_K, OVERAGE_K, CREDITS_K, OVERDRAFT_K = 1, 2, 3, 4
local FLOATING, NAMED, NODE_LOCKED = 1, 2, 3
local REASONS = {@REASONS@}

local at = 5
local function next_argument() at = at + 1 return ARGV[at] end

-- A program's views as arrays: 1 shape, 2 code, 3 level from 1, 4 place, 5 top, 6 lower, 7 upper, 8 start, 9 end, 10… extra
local function read_program()
  local program = {account = next_argument(), suffix = next_argument(), denial = next_argument()}
  local d = values_of(next_argument())
  program.epoch, program.start, program.stop, program.forced = d[2], d[3], d[4], d[5]
  local levels, chains, i = d[6], d[7], 8
  program.suffixes, program.slots, program.chains = {}, {}, {}
  for level = 1, levels do
    local slots = {}
    for s = 1, d[i] do slots[s] = d[i + s] end
    i = i + 1 + d[i]
    program.slots[level] = slots
  end
  for c = 1, chains do
    local flags = d[i]
    local chain = {shadow = flags % 2 == 1, supply = flags >= 2, reason = d[i + 1]}
    local views = d[i + 2]
    i = i + 3
    for v = 1, views do
      local shape = d[i]
      local view = {shape, d[i + 1], d[i + 2] + 1}
      for k = 4, 9 + EXTRA[shape] do view[k] = d[i + k - 1] end
      i = i + 9 + EXTRA[shape]
      chain[v] = view
    end
    program.chains[c] = chain
  end
  for level = 1, levels do program.suffixes[level] = next_argument() end
  return program
end

local states, dirty, touched, undo, epochs

-- What a check changed is taken back when its group is denied later. A check alone needs no memory of it: nothing can
-- fail between its booking and its record but the record itself, and then the unwritten states are forgotten.
local function set(state, i, value)
  if undo then
    local n = #undo
    undo[n + 1], undo[n + 2], undo[n + 3] = state, i, state[i]
  end
  state[i] = value
end

local function take_back()
  if not undo then return end
  for i = #undo - 2, 1, -3 do undo[i][undo[i + 1]] = undo[i + 2] end
  undo = {}
end

local function forget()
  for suffix in pairs(touched) do
    if not dirty[suffix] then states[suffix] = nil end
  end
end

-- A level's state, laid out for the program's epoch. Slots that the epoch does not define stay behind the others.
local function state_of(program, level)
  local suffix = program.suffixes[level]
  local state = states[suffix]
  if state and state[2] == program.epoch then return state end
  local old, n = {}, 0
  if state then
    old, n = state, state.n
  else
    local raw = call('GET', prefix .. 's:' .. suffix)
    if raw then
      state, n = values_of(raw)
      state.n = n
      if state[2] == program.epoch then
        states[suffix] = state
        return state
      end
      old = state
    end
  end
  local where, i = {}, 3
  while i <= n do
    where[old[i]] = i
    i = i + 1 + WIDTH[old[i] % 8]
  end
  state = {VERSION, program.epoch}
  local place = 3
  local function copy(code, from)
    local width = WIDTH[code % 8]
    state[place] = code
    for k = 1, width do state[place + k] = from and old[from + k] or 0 end
    place = place + 1 + width
  end
  for _, code in ipairs(program.slots[level]) do
    copy(code, where[code])
    where[code] = nil
  end
  i = 3
  while i <= n do
    if where[old[i]] then copy(old[i], i) end
    i = i + 1 + WIDTH[old[i] % 8]
  end
  state.n = place - 1
  state.new = n == 0
  states[suffix] = state
  return state
end

-- Used, held, a, b of a count as of the view's period, begun afresh if need be. Changes nothing.
local function rolled(view, state)
  local p = view[4]
  local period = state[p + 1]
  if period == view[8] then return state[p + 3], state[p + 4], state[p + 5], state[p + 6] end
  local carry = 0
  if view[1] == ROLL then
    local ordinal, limit, least, most, first = view[10], view[11], view[12], view[13], view[14]
    local missed, balance
    if state[p + 2] == 0 and period == 0 then
      missed, balance = ordinal - first, limit
    else
      missed = ordinal - state[p + 2]
      balance = max(0, limit + state[p + 5] - state[p + 3] - state[p + 4])
    end
    if missed > 0 then
      carry = min(most, max(least, balance))
      if missed > 1 then carry = min(most, carry + (missed - 1) * limit) end
    end
  end
  return 0, 0, carry, 0
end

local function family(view) return view[1] == RING10 and RING10_F or RING24_F end

local function ring_total(state, p, count)
  local total = 0
  for k = p + 3, p + 2 + count do total = total + state[k] end
  return total
end

local function tokens(level, since, refill, burst)
  if since == 0 then return burst end
  return min(burst, level + (now - since) * refill)
end

local function bounds(view, carry)
  local lower, upper = view[6], view[7]
  if view[1] == ROLL then
    if lower > 0 then lower = lower + carry end
    if upper < MAX then upper = upper + carry end
  end
  return lower, upper
end

local function affordable(view, spent, rest, held)
  local numerator, denominator, money = view[11], view[12], view[13] - spent
  local base = rest + held * numerator
  if money < 0 then return 0 end
  local most = floor((MAX - base) / numerator)
  if money * denominator + denominator > MAX then return max(0, most) end
  return max(0, min(most, floor((money * denominator + denominator - 1 - base) / numerator)))
end

local function seats_of(program, view, holder)
  local suffix, mode = program.suffixes[view[3]], view[10]
  local live = '(' .. format('%.0f', now)
  if mode == FLOATING then return call('ZCOUNT', prefix .. 'i:' .. suffix, live, '+inf'), false end
  if mode == NAMED then
    local key = prefix .. 'h:' .. suffix
    local score = call('ZSCORE', key, holder)
    return call('ZCOUNT', key, live, '+inf'), score and tonumber(score) > now or false
  end
  local key = prefix .. 'n:' .. suffix
  return call('HLEN', key), call('HEXISTS', key, holder) == 1
end

local function room(program, view, pending, need, holder)
  local shape, p = view[1], view[4]
  if shape == SEATS then
    local taken, has_one = seats_of(program, view, holder)
    return has_one and need or max(0, view[7] - taken)
  end
  local state = state_of(program, view[3])
  if shape == BUCKET then return max(0, floor(tokens(state[p + 1], state[p + 2], view[10], view[7]))) end
  local lower, upper, used, held, a, b
  if shape == RING10 or shape == RING24 then
    turn(state, p, family(view), floor(now / view[10]))
    lower, upper, used, held = view[6], view[7], ring_total(state, p, RING_COUNT[family(view)]), state[p + 2]
  else
    used, held, a, b = rolled(view, state)
    lower, upper = bounds(view, a)
  end
  local total = used + held + pending
  if total < lower then return 0 end
  local free = max(0, upper - total)
  if shape == MONEY then return min(free, affordable(view, a, b, held + pending)) end
  if shape == THROTTLE then return min(free, max(0, floor(tokens(a, b, view[11], view[12])))) end
  return free
end

-- Draws from a chain's views in order. Returns what each gives, and what nobody can give.
local function draw(program, chain, quantity, holder)
  local need, takes, pending = quantity, {}, #chain > 1 and {} or nil
  for v = 1, #chain do
    local view = chain[v]
    local slot = view[3] * 65536 + view[4]
    local free = room(program, view, pending and pending[slot] or 0, need, holder)
    local amount = min(need, free)
    takes[v] = amount
    if pending and view[1] ~= SEATS then pending[slot] = (pending[slot] or 0) + amount end
    need = need - amount
  end
  return takes, need
end

local function kind_of(view) return floor(view[2] / 16) % 16 end

-- Reason, granted, overage, shadow, each chain's takes (with what is beyond the last view added to it), which chains
-- denied, whether anything went beyond what a chain had.
local function evaluate(program, quantity, mode, holder)
  if program.forced ~= 0 then return program.forced, 0, 0, false, {}, {} end
  local chains = program.chains
  local capacity, drawn, least = {}, {}, quantity
  for c = 1, #chains do
    local takes, short = draw(program, chains[c], quantity, holder)
    drawn[c], capacity[c] = takes, quantity - short
    if not chains[c].shadow then least = min(least, capacity[c]) end
  end
  local granted = quantity
  if mode == BEST_EFFORT then granted = least elseif mode ~= RECORD_ONLY and least < quantity then granted = 0 end
  local wanted = mode == BEST_EFFORT and max(granted, 1) or quantity
  local denied, shadow, reason = {}, false, nil
  for c = 1, #chains do
    local chain = chains[c]
    denied[c] = capacity[c] < wanted and (chain.shadow or mode ~= RECORD_ONLY)
    if denied[c] then
      if chain.shadow then shadow = true elseif not reason then reason = chain.reason end
    end
  end
  if granted == 0 then return reason, 0, 0, shadow, {}, denied end
  local overage, excess = 0, false
  for c = 1, #chains do
    local chain = chains[c]
    local takes, short = drawn[c], quantity - capacity[c]
    if granted ~= quantity then takes, short = draw(program, chain, granted, holder) end
    drawn[c] = takes
    if not chain.shadow then
      if chain.supply then
        for v = 1, #chain do
          local kind = kind_of(chain[v])
          if kind == OVERAGE_K or kind == OVERDRAFT_K then overage = overage + takes[v] end
        end
        if short > 0 then
          local last = #chain > 0 and kind_of(chain[#chain])
          if last ~= OVERAGE_K and last ~= OVERDRAFT_K then overage = overage + short end
        end
      else
        for v = 1, #chain do
          if chain[v][1] == SEATS then
            local taken, has_one = seats_of(program, chain[v], holder)
            if not has_one and taken + takes[v] + (v == #chain and short or 0) > chain[v][11] then
              overage = overage + 1
            end
          end
        end
      end
    end
    if short > 0 and #chain > 0 then
      excess = true
      takes[#chain] = takes[#chain] + short
      if chain.supply then
        local last = kind_of(chain[#chain])
        if last == OVERAGE_K or last == OVERDRAFT_K then overage = overage + short end
      end
    end
  end
  return @ALLOWED@, granted, overage, shadow, drawn, denied, excess
end

-- False if a count or an amount of money would pass 2^53 - 1. Reads only. What a view had room for always fits.
local function fits(program, drawn)
  for c = 1, #drawn do
    local chain, takes, pending = program.chains[c], drawn[c], {}
    for v = 1, #chain do
      local view, amount = chain[v], takes[v]
      local shape = view[1]
      if shape ~= SEATS and shape ~= BUCKET then
        local state, p = state_of(program, view[3]), view[4]
        local slot = view[3] * 65536 + p
        local sum = (pending[slot] or 0) + amount
        pending[slot] = sum
        if shape == RING10 or shape == RING24 then
          if ring_total(state, p, RING_COUNT[family(view)]) + state[p + 2] + sum > MAX then return false end
        else
          local used, held, a, b = rolled(view, state)
          if used + held + sum > MAX then return false end
          if shape == MONEY then
            if b + (held + sum) * view[11] > MAX then return false end
            if a + (b + sum * view[11]) / view[12] > MAX then return false end
          end
        end
      end
    end
  end
  return true
end

-- Books what was drawn; returns the record's effects. `holds` collects what a reservation keeps.
local function apply(check, drawn, holds)
  local program, hold = check.program, holds and true or false
  local kind = @USAGE@
  if hold then kind = @HOLD@ elseif check.op == SEAT then kind = @LEASE_START@ end
  local expires, notes = (check.op == RESERVE or check.op == SEAT) and now + check.ttl or 0, hold and {}
  local effects = {@RECORD_VERSION@, kind, now, check.granted, check.overage, check.reason, 1, check.quantity, expires}
  for c = 1, #drawn do
    local chain, takes = program.chains[c], drawn[c]
    local kept = holds and {}
    for v = 1, #chain do
      local view, amount = chain[v], takes[v]
      local shape, p, id = view[1], view[4], floor(view[2] / 65536)
      if amount > 0 and shape == SEATS then
        local n = #effects
        effects[n + 1], effects[n + 2], effects[n + 3], effects[n + 4] = id, 0, 0, 1
      elseif amount > 0 then
        local suffix = program.suffixes[view[3]]
        local state = state_of(program, view[3])
        touched[suffix] = state
        local period, ring = view[8], shape == RING10 or shape == RING24
        local side_a, side_b = 0, 0
        if shape == BUCKET then
          local left = tokens(state[p + 1], state[p + 2], view[10], view[7]) - amount
          set(state, p + 1, max(left, -view[7]))
          set(state, p + 2, now)
        elseif ring then
          turn(state, p, family(view), floor(now / view[10]))
          if hold and shape == RING24 then
            set(state, p + 2, state[p + 2] + amount)
            period = 0
          else
            local k = p + 3 + state[p + 1] % RING_COUNT[family(view)]
            set(state, k, state[k] + amount)
            period = state[p + 1]
          end
        else
          local used, held, a, b = rolled(view, state)
          if shape == MONEY then
            side_a, side_b = -a, -b
          elseif shape == ROLL and state[p + 1] ~= view[8] then
            side_a = a
          end
          if state[p + 1] ~= view[8] then
            set(state, p + 1, view[8])
            set(state, p + 2, view[10])
          end
          if shape == THROTTLE then
            a = max(tokens(a, b, view[11], view[12]) - amount, -view[12])
            b = now
          end
          if hold then
            held = held + amount
          else
            used = used + amount
            if shape == MONEY then
              local money = b + amount * view[11]
              b = math.fmod(money, view[12])
              a = a + (money - b) / view[12]
            end
          end
          set(state, p + 3, used)
          set(state, p + 4, held)
          set(state, p + 5, a)
          set(state, p + 6, b)
          if shape == MONEY then side_a, side_b = side_a + a, side_b + b end
        end
        if shape ~= BUCKET and shape ~= RING10 then
          local n = #effects
          effects[n + 1], effects[n + 2] = id, period
          effects[n + 3], effects[n + 4] = hold and 0 or amount, hold and amount or 0
          if hold then
            local kind = kind_of(view)
            local over = chain.supply and (kind == OVERAGE_K or kind == OVERDRAFT_K)
            kept[#kept + 1] = {
              suffix, state[p], id, over, view[8], amount, ring and view[10] or 0,
              shape == MONEY and view[11] or 0, shape == MONEY and view[12] or 1,
            }
            if ring or over or shape == MONEY then
              local m = #notes
              notes[m + 1], notes[m + 2] = 0, 2 * ((n - 9) / 4 + 1) + (over and 1 or 0)
              notes[m + 3] = ring and view[10] or shape == MONEY and view[11] or 0
              notes[m + 4] = ring and 0 or shape == MONEY and view[12] or 1
            end
          end
          if side_a ~= 0 or side_b ~= 0 then
            effects[n + 5], effects[n + 6], effects[n + 7], effects[n + 8] = id + @SIDE@, period, side_a, side_b
          end
        end
      end
    end
    if holds and #kept > 0 then holds[#holds + 1] = kept end
  end
  if notes then
    for k = 1, #notes do effects[#effects + 1] = notes[k] end
  end
  return effects
end

-- Every limit as it stands: code with flags, limit, used, held, remaining, drawn, reset.
local function entries_of(program, drawn, denied, holder, out)
  local count = 0
  for c = 1, #program.chains do
    local chain = program.chains[c]
    local flags = (denied[c] and @DENIED@ or 0) + (chain.shadow and @SHADOW@ or 0)
    for v = 1, #chain do
      local view = chain[v]
      local shape, p = view[1], view[4]
      local limit, shown, kept, remaining, reset
      if shape == SEATS then
        local taken = seats_of(program, view, holder)
        limit, shown, kept, remaining, reset = view[11], 0, taken, max(0, view[7] - taken), 0
      else
        local state = state_of(program, view[3])
        if shape == BUCKET then
          local burst = view[7]
          local level = tokens(state[p + 1], state[p + 2], view[10], burst)
          local whole = floor(level)
          limit, shown, kept, remaining = burst, burst - whole, 0, max(0, whole)
          reset = level >= burst and 0 or now + ceil((burst - level) / view[10])
        else
          local lower, upper, used, held, a, b = view[6], view[7], nil, nil, nil, nil
          if shape == RING10 or shape == RING24 then
            local n = RING_COUNT[family(view)]
            turn(state, p, family(view), floor(now / view[10]))
            used, held, reset = ring_total(state, p, n), state[p + 2], 0
            for number = state[p + 1] - n + 1, state[p + 1] do
              if state[p + 3 + number % n] > 0 then reset = (number + n) * view[10] break end
            end
          else
            used, held, a, b = rolled(view, state)
            lower, upper = bounds(view, a)
            reset = view[9]
          end
          local most = view[5] == 1 and MAX or upper
          shown = max(0, min(used, most) - lower)
          local total = max(0, min(used + held, most) - lower)
          kept = total - shown
          remaining = max(0, upper - max(lower, used + held))
          limit = upper >= MAX and MAX or upper - lower
          if shape == MONEY then
            remaining = min(remaining, affordable(view, a, b, held))
            limit = total + remaining
          end
        end
      end
      local n = #out
      out[n + 1], out[n + 2], out[n + 3], out[n + 4] = view[2] + flags, limit, shown, kept
      out[n + 5], out[n + 6], out[n + 7] = remaining, drawn and drawn[c] and drawn[c][v] or 0, reset
      count = count + 1
    end
  end
  return count
end

-- The reply as it stands now, not packed yet: [8] is the sequence, [9] the expiry.
local function answer(check, drawn)
  local out = {
    OUT.DECIDED, check.reason, check.granted, check.overage, check.shadow and 1 or 0, now, generation, -1, 0, 0,
  }
  out[10] = entries_of(check.program, drawn, check.denied, check.holder, out)
  return out
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

local pending_denials

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

local function whole(group, place, reply)
  local out = {}
  for k = 1, #group do
    out[k] = k == place and reply or pack('<d', OUT.FAILED) .. 'not decided: another item of the batch was not'
  end
  return out
end

-- What the check of a journaled use had counted itself: found by its key, or by the batch that it travelled in.
local function counted_before(check)
  if check.idempotency ~= '' then
    local name = sub(check.idempotency, 1, 16)
    local found = remembered(name)
    if found and sub(found, 1, 8) ~= sub(check.idempotency, 17) then return 0 end
    if found and #found > 8 then return (unpack_('<d', found, 17)) end
    check.name = name
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
  if mark < after or mark >= number then return pack('<dd', OUT.TURN, mark) end
  local stored = tonumber(call('GET', prefix .. 'e:' .. program.account) or 0)
  if stored ~= program.epoch then return pack('<dd', OUT.EPOCH, stored) end
  if now < program.start or (program.stop ~= 0 and now >= program.stop) then return pack('<dd', OUT.SLICE, now) end
  if program.forced ~= 0 then return pack('<d', OUT.FAILED) .. REASONS[program.forced] end
  local asked = check.quantity
  check.quantity = max(0, asked - counted_before(check))
  if check.quantity > 0 then return end
  local added = pcall_('XADD', outbox, id_pattern, 'b', check.body, 'e', effects_of(@EMERGENCY@, now, 0, 0, 0, asked, 0, {}))
  if type(added) == 'table' then return pack('<d', OUT.FAILED) .. (added.err or 'no record could be written') end
  call('HSET', prefix .. 'j', check.id, format('%.0f', check.number))
  return packed({OUT.DECIDED, @ALLOWED@, 0, 0, 0, now, generation, tonumber(match(added, '%-(%d+)$')), 0, 0})
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
    if check.idempotency ~= '' and check.mode ~= CHECK_ONLY and check.mode ~= PEEK and check.op ~= JOURNALED then
      check.name = sub(check.idempotency, 1, 16)
      local found = remembered(check.name)
      if found then
        if sub(found, 1, 8) ~= sub(check.idempotency, 17) then return whole(group, k, pack('<d', OUT.REUSED)) end
        if #found == 8 then known[k] = true else replies[k] = pack('<d', OUT.REPLAYED) .. sub(found, 9) end
      end
    end
  end
  for k = 1, #group do
    if not replies[k] then
      local program = group[k].program
      local stored = epochs[program.account]
      if not stored then
        stored = tonumber(call('GET', prefix .. 'e:' .. program.account) or 0)
        epochs[program.account] = stored
      end
      if stored ~= program.epoch then return whole(group, k, pack('<dd', OUT.EPOCH, stored)) end
      if now < program.start or (program.stop ~= 0 and now >= program.stop) then
        return whole(group, k, pack('<dd', OUT.SLICE, now))
      end
    end
  end
  local alone = group[1].mode
  undo, touched = (#group > 1 or alone == CHECK_ONLY or alone == PEEK) and {} or nil, {}
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
          if check.name then remember(check.name, sub(check.idempotency, 17)) end
        end
        local out = {}
        for n = 1, #group do
          if n == k then out[n] = reply
          elseif replies[n] and unpack_('<d', replies[n]) == OUT.REPLAYED then out[n] = replies[n]
          else
            out[n] = packed({OUT.DECIDED, @BATCH_DENIED@, 0, 0, 0, now, generation, -1, 0, 0})
          end
        end
        return out
      end
      check.drawn = drawn
      if mode ~= PEEK then
        if excess and not fits(program, drawn) then
          take_back()
          return whole(group, k, pack('<d', OUT.FAILED) .. 'overflow')
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
    local expires, id = 0, ''
    if check.op == RESERVE or check.op == SEAT then expires, id = now + check.ttl, check.id end
    local added = pcall_('XADD', outbox, id_pattern, 'b', check.body, 'e', packed(check.effects))
    if type(added) == 'table' then
      if n == 1 then
        take_back()
        forget()
      end
      return whole(group, k, pack('<d', OUT.FAILED) .. (added.err or 'no record could be written'))
    end
    if check.op == RESERVE then
      call('HSET', prefix .. 'v', id, cmsgpack.pack({expires, check.granted, check.body, check.holds}))
      call('ZADD', prefix .. 'q', format('%.0f', expires), 'R' .. id)
    elseif check.op == SEAT then
      sit(check)
      check.shown = answer(check, check.drawn)
    elseif check.op == JOURNALED then
      call('HSET', prefix .. 'j', check.id, format('%.0f', check.number))
    end
    local shown = check.shown
    shown[8], shown[9] = tonumber(match(added, '%-(%d+)$')), expires
    local reply = packed(shown) .. id
    if check.name then remember(check.name, sub(check.idempotency, 17) .. sub(reply, 9)) end
    replies[k] = reply
  end
  undo = nil
  for suffix, state in pairs(touched) do dirty[suffix] = state end
  return replies
end

local out = {}
for _ = 1, tonumber(ARGV[5]) do
  local there = enter(next_argument())
  local programs, checks, keep, first = tonumber(next_argument()), tonumber(next_argument()), next_argument(), #out
  local closed = there and fenced()
  local known, list, group = {}, {}, {}
  for n = 1, programs do known[n] = read_program() end
  states, dirty, touched, undo, epochs, pending_denials = {}, {}, {}, {}, {}, {}
  if there and not closed then flush_denials() end
  for _ = 1, checks do
    local program, mode, op, more, quantity, ttl = unpack_('<HBBBdd', next_argument())
    local idempotency, body = next_argument(), next_argument()
    -- All fields at once: a table that grows is allocated again and again.
    local check = {
      program = known[program + 1], mode = mode, op = op, quantity = quantity, ttl = ttl, idempotency = idempotency,
      body = body, id = '', holder = '', name = false, reason = 0, granted = 0, overage = 0, shadow = false,
      denied = false, drawn = false, effects = false, shown = false, holds = false, number = 0,
    }
    if op ~= CHECK then check.id, check.holder = next_argument(), next_argument() end
    if not there then
      out[#out + 1] = pack('<d', OUT.LOST)
    elseif closed then
      out[#out + 1] = pack('<d', OUT.FENCED)
    else
      group[#group + 1] = check
      if more == 0 then
        local fine, replies = pcall(decide, group)
        if not fine then
          take_back()
          forget()
          replies = whole(group, 1, pack('<d', OUT.FAILED) .. (type(replies) == 'table' and replies.err or tostring(replies)))
        end
        for k = 1, #group do out[#out + 1] = replies[k] end
        group = {}
      end
    end
  end
  if there and not closed then
    for suffix, state in pairs(dirty) do
      call('SET', prefix .. 's:' .. suffix, pack(doubles(state.n), unpack(state, 1, state.n)))
      if state.new then call('SADD', prefix .. 'k', suffix) end
    end
    for name, pending in pairs(pending_denials) do
      local raw = call('HGET', prefix .. 'd', name)
      local count, quantity = pending[1], pending[2]
      if raw then
        local before, much = unpack_('<dd', raw)
        count, quantity = count + before, min(quantity + much, MAX)
      end
      call('HSET', prefix .. 'd', name, pack('<dd', count, quantity) .. pending[3])
      meta.denials = floor(now / 1000)
      meta.dirty = true
    end
    if keep ~= '0' then
      local granted, key = {batch}, prefix .. 'g:' .. enforcer .. format(':%.0f', connection)
      for k = first + 1, #out do
        local status, _, much = unpack_('<ddd', out[k] .. rep('\0', 16))
        granted[1 + k - first] = (status == OUT.DECIDED or status == OUT.REPLAYED) and much or 0
      end
      call('HSET', key, keep, packed(granted))
      call('PEXPIRE', key, format('%.0f', 3 * window_ms))
    end
    mark_batch()
    leave()
  end
end
return out
