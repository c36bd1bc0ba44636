-- Programs as they are executed, and the shapes of their views: part of decide. See enforcer.core.program.
local OUT = {EPOCH = 1, SLICE = 2, REUSED = 3, FAILED = 4, FENCED = 5, LOST = 6, ELSEWHERE = 7, TURN = 8}
local CHECK, RESERVE, SEAT, JOURNALED = 0, 1, 2, 3
local ENFORCE, CHECK_ONLY, BEST_EFFORT, RECORD_ONLY, PEEK, ALLOWANCE = 1, 2, 3, 4, 5, 6
local FLOATING, NAMED, NODE_LOCKED = 1, 2, 3
local REASONS = {@REASONS@}
local COUNT, ROLL, MONEY, THROTTLE, BUCKET, RING10, RING24, SEATS = @SHAPES@
local EXTRA = {1, 5, 4, 3, 1, 1, 1, 2}
local QUOTA_K, OVERAGE_K, CREDITS_K, OVERDRAFT_K = 1, 2, 3, 4
local QUICK = {[COUNT] = true, [ROLL] = true, [BUCKET] = true}

-- A view is an array: 1 shape, 2 code, 3 level from 1, 4 place, 5 top, 6 lower, 7 upper, 8 start, 9 end, 10… extra, and
-- `id`, `over` (it is drawn from as overage), `same` (the earlier view of its chain that reads the same slot).
-- A program is quick when nothing but counts without money or tokens and buckets are to be looked at, each alone.
local function read_program(raw)
  local n = unpack_('<d', raw)
  local d = {unpack_(doubles(n), raw, 9)}
  local position = 9 + 8 * n
  local function text()
    local length = unpack_('<d', raw, position)
    local found = sub(raw, position + 8, position + 7 + length)
    position = position + 8 + length
    return found
  end
  local program = {
    epoch = d[2], start = d[3], stop = d[4], forced = d[5], suffixes = {}, slots = {}, chains = {}, keys = {},
    quick = d[5] == 0,
  }
  program.epoch_key = prefix .. 'e:' .. text()
  program.suffix = text()
  program.denial = text()
  program.reads = {names.meta, program.epoch_key@WHOLE@}
  local levels, chains, i = d[6], d[7], 8
  for level = 1, levels do
    local slots = {}
    for s = 1, d[i] do slots[s] = d[i + s] end
    i = i + 1 + d[i]
    program.slots[level] = slots
    program.suffixes[level] = text()
    program.keys[level] = prefix .. 's:' .. program.suffixes[level]
    program.reads[#program.reads + 1] = program.keys[level]
  end
  local taken = {}
  for c = 1, chains do
    local flags = d[i]
    local chain = {shadow = flags % 2 == 1, supply = flags >= 2, reason = d[i + 1], n = d[i + 2]}
    i = i + 3
    for v = 1, chain.n do
      local shape = d[i]
      local view = {shape, d[i + 1], d[i + 2] + 1}
      for k = 4, 9 + EXTRA[shape] do view[k] = d[i + k - 1] end
      i = i + 9 + EXTRA[shape]
      view.id = floor(view[2] / 65536)
      local kind, slot = floor(view[2] / 16) % 16, view[3] * 65536 + view[4]
      view.over = chain.supply and (kind == OVERAGE_K or kind == OVERDRAFT_K)
      for u = 1, v - 1 do
        if chain[u][3] == view[3] and chain[u][4] == view[4] then view.same = u end
      end
      if taken[slot] and taken[slot] ~= c then program.quick = false end
      taken[slot] = c
      if not QUICK[shape] or (view.same and shape == BUCKET) then program.quick = false end
      chain[v] = view
    end
    if chain.shadow then program.quick = false end
    program.chains[c] = chain
  end
  return program
end

-- Programs by what they were read from, for each bucket. What was read stays true: another epoch is another program.
local MOST_KNOWN = 2048
local known, known_count = {}, 0
local function program_of(raw)
  local here = known[prefix]
  if not here then
    here = {}
    known[prefix] = here
  end
  local program = here[raw]
  if not program then
    program = read_program(raw)
    if known_count == MOST_KNOWN then
      here, known, known_count = {}, {}, 0
      known[prefix] = here
    end
    here[raw] = program
    known_count = known_count + 1
  end
  return program
end
