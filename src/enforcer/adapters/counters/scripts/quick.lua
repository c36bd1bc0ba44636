-- The common check, decided in one go: part of decide. Does what evaluate, apply and entries_of of rules.lua do, for a
-- quick program of which every chain can take the whole quantity. It makes no tables, and compares instead of calling
-- min and max: a call costs as much as ten comparisons.

-- Used again and again: what each view gives, the record's effects, the reply.
local gives, effects, shown = {}, {}, {}

-- Formats of replies: 8 bytes of fingerprint, then doubles.
local reply_formats = {}
local function reply_format(n)
  local found = '<c8' .. rep('d', n)
  reply_formats[n] = found
  return found
end

-- Returns the reply, or nothing and an error; only nothing where there is more to look at. Then nothing was changed.
local function quick(program, quantity, body, finger)
  local chains, keys, at, epoch = program.chains, program.keys, now, program.epoch
  local overage, t, e = 0, 0, 9
  for c = 1, #chains do
    local chain, need, first = chains[c], quantity, t
    for v = 1, chain.n do
      local view = chain[v]
      local state, p, free = states[keys[view[3]]], view[4], nil
      if not state or state[2] ~= epoch then state = state_of(program, view[3]) end
      if view[1] == BUCKET then
        local since = state[p + 2]
        free = view[7]
        if since ~= 0 then
          local level = state[p + 1] + (at - since) * view[10]
          if level < free then free = floor(level) end
        end
      else
        local lower, upper, fresh = view[6], view[7], state[p + 1] ~= view[8]
        local total, carry = nil, 0
        if fresh then
          local used, held
          used, held, carry = rolled(view, state)
          total = used + held
        else
          total = state[p + 3] + state[p + 4]
          if view[1] == ROLL then carry = state[p + 5] end
        end
        if carry ~= 0 then
          if lower > 0 then lower = lower + carry end
          if upper < MAX then upper = upper + carry end
        end
        local same, given = view.same, 0
        while same do
          given = given + gives[first + same]
          same = chain[same].same
        end
        total = total + given
        free = total < lower and 0 or upper - total
        if free > 0 and need > 0 then
          effects[e + 1], effects[e + 2], effects[e + 3], effects[e + 4] = view.id, view[8], free < need and free or need, 0
          e = e + 4
          if fresh and carry ~= 0 and given == 0 then
            effects[e + 1], effects[e + 2], effects[e + 3], effects[e + 4] = view.id + @SIDE@, view[8], carry, 0
            e = e + 4
          end
        end
      end
      if free > need then free = need elseif free < 0 then free = 0 end
      need = need - free
      t = t + 1
      gives[t] = free
      if view.over then overage = overage + free end
    end
    if need > 0 then return end
  end
  effects[1], effects[2], effects[3], effects[4], effects[5], effects[6], effects[7], effects[8], effects[9] =
    @RECORD_VERSION@, @USAGE@, at, quantity, overage, @ALLOWED@, 1, quantity, 0
  local added = pcall_('XADD', outbox, id_pattern, 'b', body, 'e', pack(formats[e] or doubles(e), unpack(effects, 1, e)))
  if type(added) == 'table' then return nil, added.err or 'no record could be written' end
  -- Slots of different views of a chain may be one: all are booked before any is shown.
  t = 0
  for c = 1, #chains do
    local chain = chains[c]
    for v = 1, chain.n do
      t = t + 1
      local amount = gives[t]
      if amount > 0 then
        local view = chain[v]
        local key, p = keys[view[3]], view[4]
        local state = states[key]
        dirty[key] = state
        if view[1] == BUCKET then
          local level, since, burst = state[p + 1], state[p + 2], view[7]
          if since == 0 then level = burst else level = level + (at - since) * view[10] end
          if level > burst then level = burst end
          state[p + 1], state[p + 2] = level - amount, at
        elseif state[p + 1] == view[8] then
          state[p + 3] = state[p + 3] + amount
        else
          local _, _, a, b = rolled(view, state)
          state[p + 1], state[p + 2], state[p + 3], state[p + 4], state[p + 5], state[p + 6] = view[8], view[10], amount, 0, a, b
        end
      end
    end
  end
  t = 0
  local n = 9
  for c = 1, #chains do
    local chain = chains[c]
    for v = 1, chain.n do
      local view = chain[v]
      local state, p = states[keys[view[3]]], view[4]
      local limit, used, held, remaining, reset
      if view[1] == BUCKET then
        -- Something was drawn from every bucket at this moment.
        local level = state[p + 1]
        limit, held = view[7], 0
        remaining = floor(level)
        used, reset = limit - remaining, level >= limit and 0 or at + ceil((limit - level) / view[10])
      else
        local lower, upper, carry = view[6], view[7], 0
        if state[p + 1] == view[8] then
          used, held = state[p + 3], state[p + 4]
          if view[1] == ROLL then carry = state[p + 5] end
        else
          used, held, carry = rolled(view, state)
        end
        if carry ~= 0 then
          if lower > 0 then lower = lower + carry end
          if upper < MAX then upper = upper + carry end
        end
        local total = used + held
        remaining = upper - (total > lower and total or lower)
        if remaining < 0 then remaining = 0 end
        if view[5] ~= 1 then
          if used > upper then used = upper end
          if total > upper then total = upper end
        end
        used, total = used - lower, total - lower
        if used < 0 then used = 0 end
        if total < 0 then total = 0 end
        held = total - used
        limit, reset = upper >= MAX and MAX or upper - lower, view[9]
      end
      t = t + 1
      shown[n + 1], shown[n + 2], shown[n + 3], shown[n + 4], shown[n + 5], shown[n + 6], shown[n + 7] =
        view[2], limit, used, held, remaining, gives[t], reset
      n = n + 7
    end
  end
  shown[1], shown[2], shown[3], shown[4], shown[5], shown[6], shown[7], shown[8], shown[9] =
    @ALLOWED@, quantity, overage, 0, at, generation, sequence_of(added), 0, t
  return pack(reply_formats[n] or reply_format(n), finger, unpack(shown, 1, n))
end
