#!lua name=@LIBRARY@
-- What checks and what is held are decided by, as functions of the server @RUN@.
-- The library's name and text are of that server process alone: on any other, such as a replica that was promoted, its
-- functions answer NOSCRIPT as if they were not there. Everything is made at the first call and stays until the process
-- ends: no call compiles a program again that it has seen.
local parts
local function make()
  local decide_all, hold
@PARTS@
  local process = match(call('INFO', 'server'), 'run_id:(%w+)')@REIGN@
  return {decide = decide_all, hold = hold, here = process == '@RUN@'}
end
local function run(name, arguments)
  parts = parts or make()
  if not parts.here then return redis.error_reply('NOSCRIPT this server has another run id than the library') end
  return parts[name](arguments)
end
redis.register_function{
  function_name = 'decide_@LIBRARY@', flags = {'allow-cross-slot-keys'},
  callback = function(_, arguments) return run('decide', arguments) end,
}
redis.register_function{
  function_name = 'hold_@LIBRARY@', flags = {'allow-cross-slot-keys'},
  callback = function(_, arguments) return run('hold', arguments) end,
}
