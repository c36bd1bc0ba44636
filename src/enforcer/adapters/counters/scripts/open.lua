-- Opens a bucket's generation: the handshake with a server that this script was not loaded on before. See
-- enforcer.adapters.counters.handshake for the order that makes it safe.
-- KEYS  [1] the bucket's meta
-- ARGV  bucket prefix, run id of the server, new generation or 0 to look only, who may create the bucket: '' nobody,
--       'new' if it is a first start, or the token of the rebuild that is complete; the furthest place that is known:
--       generation, sequence
-- Returns generation and run id it was opened on, last generation and sequence in the outbox, or 'lost' where the meta
-- is missing and may not be created, or 'used' where the generation is too small.
@CLOCK@
local call, format, pack, unpack_ = redis.call, string.format, struct.pack, struct.unpack
call('MGET', KEYS[1], ARGV[1] .. '!') -- fails where only part of the bucket is here, on its way to another node
local prefix, run, wanted = ARGV[1], ARGV[2], tonumber(ARGV[3])
local create, known_generation, known_sequence = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
local raw = call('GET', prefix .. 'm')
local last_generation, last_sequence = 0, -1
if call('EXISTS', prefix .. 'o') == 1 then
  local info = call('XINFO', 'STREAM', prefix .. 'o')
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      local g, s = string.match(info[i + 1], '^(%d+)%-(%d+)$')
      last_generation, last_sequence = tonumber(g), tonumber(s)
    end
  end
end
local version, generation, last_now, denials, opened_on = @VERSION@, 0, 0, 0, ''
if raw then
  version, generation, last_now, denials = unpack_('<dddd', raw)
  opened_on = string.sub(raw, 33)
elseif create == '' or (call('HGET', prefix .. 'w', 'token') or 'new') ~= create then
  return {'lost', '', format('%.0f', last_generation), format('%.0f', last_sequence)}
end
local function found()
  return {format('%.0f', generation), opened_on, format('%.0f', last_generation), format('%.0f', last_sequence)}
end
if wanted == 0 or (raw and opened_on == run) then return found() end
if wanted <= generation or wanted <= last_generation then return {'used'} end

local now = math.max(CLOCK, last_now)
local previous, last = last_generation, last_sequence
if known_generation > previous or (known_generation == previous and known_sequence > last) then
  previous, last = known_generation, known_sequence
end
call('XADD', prefix .. 'o', format('%.0f-*', wanted), 'b', @NOBODY@, 'e', pack('<ddddddddd', @RECORD_VERSION@, @GENERATION@,
  now, 0, 0, 0, 1, last, previous))

-- Nobody could renew while the server was away: every live lease lasts longer by that time.
local away = raw and now - last_now or 0
if away > 0 then
  local flat = call('HGETALL', prefix .. 'l')
  for i = 1, #flat, 2 do
    local id, l = flat[i], cmsgpack.unpack(flat[i + 1])
    if l[5] > last_now then
      l[5] = l[5] + away
      local score = format('%.0f', l[5])
      call('HSET', prefix .. 'l', id, cmsgpack.pack(l))
      call('ZADD', prefix .. 'q', score, 'L' .. id)
      for _, suffix in ipairs(l[1]) do
        call('ZADD', prefix .. 'i:' .. suffix, score, id)
        if l[2] ~= 1 then
          local mine = prefix .. 'u:' .. suffix .. ':' .. l[3]
          call('ZADD', mine, score, id)
          call('ZADD', prefix .. 'h:' .. suffix, call('ZREVRANGE', mine, 0, 0, 'WITHSCORES')[2], l[3])
        end
      end
    end
  end
end
if previous > 0 then call('HSET', prefix .. 'x', format('%.0f', previous), format('%.0f', last)) end
generation, opened_on = wanted, run
call('SET', prefix .. 'm', pack('<dddd', version, generation, now, denials) .. run)
call('DEL', prefix .. 'w')
return found()
