-- The common check, decided in one go: part of decide. Does what evaluate, apply and entries_of of rules.lua do, for a
-- quick program of which every chain can take the whole quantity.

-- Used again and again, so that a check makes no tables: what each view gives, the record's effects, the reply.
local gives, effects, shown = {}, {}, {}

-- Returns the reply, what is to be remembered of it, and an error; nothing where there is more to look at: then nothing
-- was changed.
local function quick(program, quantity, body)
  local chains, states_, at = program.chains, program.keys, now
  local epoch, overage, t, e = program.epoch, 0, 0, 9
  for c = 1, #chains do
    local chain, need, first = chains[c], quantity, t
    for v = 1, chain.n do
      local view = chain[v]
      local state = states[states_[view[3]]]
      if not state or state[2] ~= epoch then state = state_of(program, view[3]) end
      local p, free = view[4], nil
      if view[1] == BUCKET then
        local since = state[p + 2]
        free = view[7]
        if since ~= 0 then free = floor(min(free, state[p + 1] + (at - since) * view[10])) end
      else
        local lower, upper, total, carry = view[6], view[7], nil, nil
        local fresh = state[p + 1] ~= view[8]
        if fresh then
          local used, held
          used, held, carry = rolled(view, state)
          total = used + held
        else
          total, carry = state[p + 3] + state[p + 4], state[p + 5]
        end
        if view[1] == ROLL then
          if lower > 0 then lower = lower + carry end
          if upper < MAX then upper = upper + carry end
        else
          carry = 0
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
  local added = pcall_('XADD', outbox, id_pattern, 'b', body, 'e', pack(doubles(e), unpack(effects, 1, e)))
  if type(added) == 'table' then return nil, added.err or 'no record could be written' end
  t = 0
  for c = 1, #chains do
    local chain = chains[c]
    for v = 1, chain.n do
      t = t + 1
      local amount = gives[t]
      if amount > 0 then
        local view = chain[v]
        local key = states_[view[3]]
        local state, p = states[key], view[4]
        dirty[key] = state
        if view[1] == BUCKET then
          state[p + 1] = tokens(state[p + 1], state[p + 2], view[10], view[7]) - amount
          state[p + 2] = at
        else
          if state[p + 1] ~= view[8] then
            local _, _, a, b = rolled(view, state)
            state[p + 1], state[p + 2], state[p + 3], state[p + 4], state[p + 5], state[p + 6] = view[8], view[10], 0, 0, a, b
          end
          state[p + 3] = state[p + 3] + amount
        end
      end
    end
  end
  t = 0
  local n = 10
  for c = 1, #chains do
    local chain = chains[c]
    for v = 1, chain.n do
      local view = chain[v]
      local state, p = states[states_[view[3]]], view[4]
      t = t + 1
      shown[n + 1], shown[n + 6] = view[2], gives[t]
      if view[1] == BUCKET then
        local burst = view[7]
        local level = tokens(state[p + 1], state[p + 2], view[10], burst)
        local whole = max(0, floor(level))
        shown[n + 2], shown[n + 3], shown[n + 4], shown[n + 5] = burst, burst - floor(level), 0, whole
        shown[n + 7] = level >= burst and 0 or at + ceil((burst - level) / view[10])
      else
        local lower, upper, used, held, carry = view[6], view[7], nil, nil, nil
        if state[p + 1] == view[8] then
          used, held, carry = state[p + 3], state[p + 4], state[p + 5]
        else
          used, held, carry = rolled(view, state)
        end
        if view[1] == ROLL then
          if lower > 0 then lower = lower + carry end
          if upper < MAX then upper = upper + carry end
        end
        local total, most = used + held, view[5] == 1 and MAX or upper
        shown[n + 5] = max(0, upper - max(lower, total))
        used, total = max(0, min(used, most) - lower), max(0, min(total, most) - lower)
        shown[n + 2], shown[n + 3], shown[n + 4] = upper >= MAX and MAX or upper - lower, used, total - used
        shown[n + 7] = view[9]
      end
      n = n + 7
    end
  end
  shown[1], shown[2], shown[3], shown[4], shown[5], shown[6], shown[7], shown[8], shown[9], shown[10] =
    OUT.DECIDED, @ALLOWED@, quantity, overage, 0, at, generation, sequence_of(added), 0, t
  return pack(doubles(n), unpack(shown, 1, n))
end
