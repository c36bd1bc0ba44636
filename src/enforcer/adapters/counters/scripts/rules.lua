-- The rules that programs are decided by, on states of levels: part of decide. See enforcer.core.rules.
-- `states` are those of the bucket that were looked at in this call, by key, `raws` what they were read from; `dirty` those
-- that are to be written, `touched` those that the group has changed, `undo` what they were before; `unlisted` are levels
-- that had no state.
local states, raws, dirty, touched, undo, unlisted = {}, {}, {}, {}, {}, {}

-- What a check changed is taken back when its group is denied later, or has no record.
local function set(state, i, value)
  local n = #undo
  undo[n + 1], undo[n + 2], undo[n + 3] = state, i, state[i]
  state[i] = value
end

local function take_back()
  for i = #undo - 2, 1, -3 do undo[i][undo[i + 1]] = undo[i + 2] end
  undo = {}
end

-- A level's state, laid out for the program's epoch. Slots that the epoch does not define stay behind the others. Behind
-- the values is one more, as `values_of` leaves it: a field of its own for their number would cost as much as reading them.
local function state_of(program, level)
  local key = program.keys[level]
  local state = states[key]
  if state and state[2] == program.epoch then return state end
  local old, n = {}, 0
  if state then
    old, n = state, #state - 1
  else
    -- One that is not there, or that is no string: asking again tells.
    local raw = raws[key] or call('GET', key)
    if raw then
      state, n = values_of(raw)
      if state[2] == program.epoch then
        states[key] = state
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
  state[place] = 0
  if n == 0 then unlisted[key] = program.suffixes[level] end
  states[key] = state
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
  local chains, share = program.chains, mode == ALLOWANCE
  if share then quantity = min(quantity * @SHARE@, MAX) end
  local capacity, drawn, least = {}, {}, quantity
  for c = 1, #chains do
    local takes, short = draw(program, chains[c], quantity, holder)
    drawn[c], capacity[c] = takes, quantity - short
    if not chains[c].shadow then least = min(least, capacity[c]) end
  end
  local granted = quantity
  if mode == BEST_EFFORT then granted = least elseif share then granted = ceil(least / @SHARE@) elseif mode ~= RECORD_ONLY and least < quantity then granted = 0 end
  local wanted = (mode == BEST_EFFORT or share) and max(granted, 1) or quantity
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

-- When what a check takes ends; 0 if it does not. A block of supply ends with the slice it is taken in.
local function ends(check)
  if check.op ~= RESERVE and check.op ~= SEAT then return 0 end
  local at, stop = now + check.ttl, check.program.stop
  if check.mode == ALLOWANCE and stop ~= 0 then at = min(at, stop) end
  return at
end

-- Books what was drawn; returns the record's effects. `holds` collects what a reservation keeps.
local function apply(check, drawn, holds)
  local program, hold = check.program, holds and true or false
  local kind = @USAGE@
  if hold then kind = check.mode == ALLOWANCE and @ALLOWANCE@ or @HOLD@ elseif check.op == SEAT then kind = @LEASE_START@ end
  local expires, notes = ends(check), hold and {}
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
        touched[program.keys[view[3]]] = state
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

