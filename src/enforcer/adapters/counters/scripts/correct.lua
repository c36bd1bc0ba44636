-- Corrections of usage, in the order of the bucket's list: part of hold.lua. See enforcer.core.corrections.
-- c  hash: 'n' the number of the last correction carried out, 'g' in which generation, and the outcome of each that is not acknowledged yet.

-- The slot of a counter among the levels that are named, then among all.
local function find_slot(read, suffixes, limit)
  local function look(suffix)
    local state = read(suffix)
    if not state then return end
    local p = 3
    while p <= state.n do
      local code = state[p]
      local family = code % 8
      if floor(code / 8) == limit and (family == COUNT_F or family == RING24_F) then return state, p end
      p = p + 1 + WIDTH[family]
    end
  end
  for _, suffix in ipairs(suffixes) do
    local state, p = look(suffix)
    if state then return state, p end
  end
  local all = call('SMEMBERS', prefix .. 'k')
  table.sort(all, bytes_before)
  for _, suffix in ipairs(all) do
    local state, p = look(suffix)
    if state then return state, p end
  end
end

-- The slot that a draw names; one that was never used is put behind the others, where it stays until the next layout.
local function named_slot(read, suffix, code)
  local state = read(suffix)
  if not state then
    state = {VERSION, 0, n = 2, new = true}
    read(suffix, state)
  end
  local p = 3
  while p <= state.n and state[p] ~= code do p = p + 1 + WIDTH[state[p] % 8] end
  if p > state.n then
    state[p] = code
    for k = 1, WIDTH[code % 8] do state[p + k] = 0 end
    state.n = p + WIDTH[code % 8]
  end
  return state, p
end

-- Makes the slot show the change's period. False when it does not (any more).
local function book_period(state, p, one)
  local period, delta = one[2], one[3]
  if state[p] % 8 == RING24_F then
    local width = one[7]
    if width > 0 then turn(state, p, RING24_F, floor(now / width)) end
    return state[p + 1] - RING_COUNT[RING24_F] < period and period <= state[p + 1]
  end
  if state[p + 1] == period then return true end
  if state[p + 1] > period or delta < 0 then return false end
  local roll, carry = one[10], 0
  if #roll > 1 then
    local ordinal, limit, least, most, first = roll[1], roll[2], roll[3], roll[4], roll[5]
    local missed, balance
    if state[p + 2] == 0 and state[p + 1] == 0 then
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
  state[p + 1], state[p + 2], state[p + 3], state[p + 4], state[p + 5], state[p + 6] = period, roll[1], 0, 0, carry, 0
  return true
end

local function ring_sum(state, p)
  local total = state[p + 2]
  for k = p + 3, p + 2 + RING_COUNT[RING24_F] do total = total + state[k] end
  return total
end

-- Books one change and adds it to the effects. Returns 'overflow', 'moved' or nothing.
local function book(read, one, effects)
  local function effect(limit, used, held)
    local n = #effects
    effects[n + 1], effects[n + 2], effects[n + 3], effects[n + 4] = limit, one[2], used, held
  end
  effect(one[1], one[3], 0)
  local limit, period, delta, suffixes, code, most = one[1], one[2], one[3], one[4], one[5], one[6]
  local numerator, denominator = one[8], one[9]
  local state, p
  if code ~= 0 then state, p = named_slot(read, suffixes[1], code) else state, p = find_slot(read, suffixes, limit) end
  if not state then return end
  local old = {}
  local width = WIDTH[state[p] % 8]
  for k = 1, width do old[k] = state[p + k] end
  if not book_period(state, p, one) then
    for k = 1, width do state[p + k] = old[k] end
    return
  end
  local ring = state[p] % 8 == RING24_F
  if delta > 0 then
    local total = ring and ring_sum(state, p) or state[p + 3] + state[p + 4]
    if total + delta > MAX then return 'overflow' end
    if numerator > 0 then
      if state[p + 6] + (state[p + 4] + delta) * numerator > MAX then return 'overflow' end
      if state[p + 5] + (state[p + 6] + delta * numerator) / denominator > MAX then return 'overflow' end
    end
    local over = (not ring and #one[10] > 1) and state[p + 5] or 0
    if most < MAX and total + delta > most + over then return 'moved' end
  end
  state.dirty = true
  if ring then
    local k = p + 3 + period % RING_COUNT[RING24_F]
    state[k] = state[k] + delta
    return
  end
  state[p + 3] = state[p + 3] + delta
  local kept = old[1] == period
  if numerator == 0 then
    if #one[10] > 1 and not kept and state[p + 5] ~= 0 then effect(limit + @SIDE@, state[p + 5], 0) end
    return
  end
  if delta > 0 then
    local money = state[p + 6] + delta * numerator
    local rest = math.fmod(money, denominator)
    state[p + 6] = rest
    state[p + 5] = state[p + 5] + (money - rest) / denominator
  else
    local back = -delta * numerator
    local rest = math.fmod(back, denominator)
    state[p + 5] = state[p + 5] - (back - rest) / denominator
    state[p + 6] = state[p + 6] - rest
    if state[p + 6] < 0 then
      state[p + 5] = state[p + 5] - 1
      state[p + 6] = state[p + 6] + denominator
    end
    if state[p + 5] < 0 or back > MAX then state[p + 5], state[p + 6] = 0, 0 end
  end
  local a = state[p + 5] - (kept and old[5] or 0)
  local b = state[p + 6] - (kept and old[6] or 0)
  if a ~= 0 or b ~= 0 then effect(limit + @SIDE@, a, b) end
end

-- Carries out one correction that is next. Returns its outcome, and whether it is final.
local function correct_one(number, c)
  local body, kind, granted, overage, count, quantity, adjusts, changes, account, epoch, refused =
    c[2], c[3], c[4], c[5], c[6], c[7], c[8], c[9], c[10], c[11], c[12]
  if refused ~= '' then return pack('<dd', 1, number) .. refused, true end
  if account ~= 0 then
    local stored = tonumber(call('GET', prefix .. 'e:' .. format('%.0f', account)) or 0)
    if stored ~= epoch then return pack('<dd', 4, stored), false end
  end
  local states = {}
  local function read(suffix, made)
    if made then states[suffix] = made end
    local state = states[suffix]
    if state == nil then
      local raw = call('GET', prefix .. 's:' .. suffix)
      state = false
      if raw then
        local n
        state, n = values_of(raw)
        state.n = n
      end
      states[suffix] = state
    end
    return state
  end
  local effects = {@RECORD_VERSION@, kind, now, granted, overage, @ALLOWED@, count, quantity, adjusts}
  local out = {0, number, generation, 0, now, granted, overage}
  for _, one in ipairs(changes) do
    local why = book(read, one, effects)
    if why == 'overflow' then return pack('<dd', 1, number) .. '@OVERFLOW@', true end
    if why == 'moved' then return pack('<dd', 3, number), false end
    local m = #out
    out[m + 1], out[m + 2], out[m + 3] = one[1], one[2], one[3]
  end
  out[4] = append(body, packed(effects))
  for suffix, state in pairs(states) do
    if state and state.dirty then
      call('SET', prefix .. 's:' .. suffix, pack(doubles(state.n), unpack(state, 1, state.n)))
      if state.new then call('SADD', prefix .. 'k', suffix) end
    end
  end
  return packed(out), true
end

-- Outcomes as packed doubles: 0 done: number, generation, sequence, now, granted, overage, changes │ 1 refused: number,
-- why │ 2 known: number │ 3 moved: number │ 4 epoch is stale: the stored one │
-- 5 uncertain: number. The last three end the list.
local function correct(acknowledged, certain, ...)
  local key, out = prefix .. 'c', {}
  local done, upto = tonumber(call('HGET', key, 'n') or 0), tonumber(acknowledged)
  if tonumber(call('HGET', key, 'g') or 0) ~= generation then
    if certain == '0' then return {pack('<dd', 5, cmsgpack.unpack((...))[1])} end
    call('DEL', key)
    call('HSET', key, 'g', format('%.0f', generation), 'n', acknowledged)
    done = upto
  end
  if upto > done then done = upto call('HSET', key, 'n', format('%.0f', done)) end
  for _, name in ipairs(call('HKEYS', key)) do
    if name ~= 'n' and name ~= 'g' and tonumber(name) <= upto then call('HDEL', key, name) end
  end
  for _, raw in ipairs({...}) do
    local c = cmsgpack.unpack(raw)
    local number = c[1]
    local name = format('%.0f', number)
    if number <= done then
      out[#out + 1] = call('HGET', key, name) or pack('<dd', 2, number)
    elseif number > done + 1 then
      out[#out + 1] = pack('<dd', 3, number)
      break
    else
      local reply, final = correct_one(number, c)
      out[#out + 1] = reply
      if not final then break end
      call('HSET', key, name, reply, 'n', name)
      done = number
    end
  end
  return out
end

local function slots(...)
  local last, states = -1, {}
  local info = call('XINFO', 'STREAM', outbox)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      local gen, sequence = match(info[i + 1], '^(%d+)%-(%d+)$')
      if tonumber(gen) == generation then last = tonumber(sequence) end
    end
  end
  for k, suffix in ipairs({...}) do states[k] = call('GET', prefix .. 's:' .. suffix) or '' end
  return {format('%.0f', generation), format('%.0f', last), format('%.0f', now), states}
end

