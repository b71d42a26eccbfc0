-- What Envoy has no words of its own for, of the requests that it answers itself:
-- which trace a request belongs to, where an answer leads, and when to come again.
-- Where answers lead is as `synchromesh.gateway.leading` has it: what an upstream says of its own
-- places becomes a path of the gateway. The metadata of a route says how, in `told`:
--   ways     from: a pattern of an upstream's path; to: what it is outside
--   scheme   by which the upstream is asked
--   token_s  how long a token of the rate takes
--   rate     what is said of the rate: its policy, and the name and size of a bucket
-- Fields that begin with synchromesh- come from the filters beside, and are taken off here.

local NAMESPACE = "envoy.filters.http.lua"
local NEW_TRACE, TRACEPARENT = "synchromesh-new-trace", "traceparent"
local FROM, DETAILS = "synchromesh-upstream-host", "synchromesh-details"
local FIELDS = { "location", "content-location", "refresh", "link", "set-cookie" }
local PORTS = { http = 80, https = 443, ws = 80, wss = 443 }

local function outside(path, ways)
  for _, way in ipairs(ways) do
    local found, count = string.gsub(path, way.from, way.to)
    if count == 1 then return found end
  end
  return nil
end

local function place_of(authority, usual)
  authority = string.gsub(authority, "^.*@", "")
  local host, port = string.match(authority, "^(%[[^%]]*%]):?(%d*)$")
  if not host then host, port = string.match(authority, "^([^:]*):?(%d*)$") end
  if not host then return nil end
  host = string.gsub(string.lower(host), "%.$", "")
  return host, tonumber(port) or usual
end

local function is_own(authority, scheme, own)
  local host, port = place_of(authority, scheme and PORTS[scheme] or own.port)
  return host == own.host and port == own.port
end

local function joined(path, more)
  -- Two slashes would make a host of what follows, and clients take a backslash for a slash.
  if string.match(path, "^/[%z\1-\32\127]*[/\\]") then return "/." .. path .. more end
  return path .. more
end

local function reference(text, own, ways)
  local scheme, authority, path, more = string.match(text, "^(%a+)://([^/?#\\]*)([^?#]*)(.*)$")
  if scheme then
    scheme = string.lower(scheme)
    if not PORTS[scheme] then return text end
  else
    authority, path, more = string.match(text, "^//([^/?#\\]*)([^?#]*)(.*)$")
  end
  if authority then
    if not is_own(authority, scheme, own) then return text end
    if path == "" then path = "/" end
    return joined(outside(path, ways) or path, more)
  end
  path, more = string.match(text, "^(/[^?#]*)(.*)$")
  if not path or string.match(path, "^/[/\\]") then return text end
  return joined(outside(path, ways) or path, more)
end

local function refresh(text, own, ways)
  local delay, rest = string.match(text, "^([^;]*;)(.*)$")
  if not delay then return text end
  local begun, target = string.match(rest, "^([ \t]*[uU][rR][lL][ \t]*=[ \t]*[\"']?)(.*)$")
  if not begun then begun, target = string.match(rest, "^([ \t]*[\"']?)(.*)$") end
  local bare, tail = string.match(target, "^(.-)([ \t\"']*)$")
  return delay .. begun .. reference(bare, own, ways) .. tail
end

local function link(text, own, ways)
  return (string.gsub(text, "<([^<>]*)>", function(target)
    return "<" .. reference(target, own, ways) .. ">"
  end))
end

local function cookie_path(path, ways)
  local found = outside(path, ways) or outside(path .. "/", ways)
  if not found then return path end
  found = string.gsub(found, "/+$", "")
  return found == "" and "/" or found
end

local function cookie(text, own, ways)
  local kept = {}
  local is_bound = string.match(string.lower(text), "^[ \t]*__host%-") ~= nil
  for part in string.gmatch(text .. ";", "([^;]*);") do
    local name, value = string.match(part, "^[ \t]*([^=]-)[ \t]*=[ \t]*(.-)[ \t]*$")
    name = string.lower(name or "")
    if #kept == 0 then
      kept[1] = part
    elseif name == "domain" and string.lower((string.gsub(value, "^%.", ""))) == own.host then
      -- It is the gateway's then, which its client may call as it likes.
    elseif name == "path" and string.sub(value, 1, 1) == "/" and not is_bound then
      kept[#kept + 1] = " Path=" .. cookie_path(value, ways)
    else
      kept[#kept + 1] = part
    end
  end
  return table.concat(kept, ";")
end

local RULES = {
  location = reference, ["content-location"] = reference, refresh = refresh, link = link,
  ["set-cookie"] = cookie,
}

local function led(headers, from, told)
  local host, port = place_of(from, PORTS[told.scheme])
  local own = { host = host, port = port }
  local found = {}
  for name, value in pairs(headers) do
    if RULES[name] then found[#found + 1] = { name, RULES[name](value, own, told.ways) } end
  end
  for _, name in ipairs(FIELDS) do headers:remove(name) end
  for _, field in ipairs(found) do headers:add(field[1], field[2]) end
end


-- What the filter of rates says of a bucket, as the gateway has it, beside what an upstream says.
local function tell_rate(headers, rate)
  local left = tonumber(headers:get("x-ratelimit-remaining") or "")
  local more_in_s = tonumber(headers:get("x-ratelimit-reset") or "")
  for _, name in ipairs({ "limit", "remaining", "reset" }) do
    headers:remove("x-ratelimit-" .. name)
  end
  if not left then return end
  headers:add("ratelimit-policy", rate.policy)
  local said = rate.name .. ";r=" .. string.format("%d", math.min(left, rate.burst))
  -- Where something is left it tells when the next may come, which is now.
  if left < 1 then
    said = said .. ";t=" .. string.format("%d", math.max(1, more_in_s or 1))
  end
  headers:add("ratelimit", said)
end

-- What `Connection` names belongs to one hop alone.
local function drop_named(headers)
  for name in string.gmatch(headers:get("connection") or "", "[^%s,]+") do
    name = string.lower(name)
    if name ~= "close" and name ~= "keep-alive" then headers:remove(name) end
  end
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local new = headers:get(NEW_TRACE) or ""
  headers:remove(NEW_TRACE)
  local parent = headers:get(TRACEPARENT)
  if not parent then
    new = string.gsub(new, "-", "")
    parent = "00-" .. new .. "-" .. string.sub(new, 17) .. "-01"
    headers:replace(TRACEPARENT, parent)
    headers:remove("tracestate")
  end
  handle:streamInfo():dynamicMetadata():set(NAMESPACE, "trace", string.sub(parent, 4, 35))
end

function envoy_on_response(handle)
  local headers, told = handle:headers(), handle:metadata():get("told")
  local details, from = headers:get(DETAILS), headers:get(FROM) or ""
  headers:remove(DETAILS)
  headers:remove(FROM)
  if not told then return end
  if told.rate then tell_rate(headers, told.rate) end
  if details == "local_rate_limited" then
    headers:replace("retry-after", told.token_s)
  elseif details == "via_upstream" then
    drop_named(headers)
    if not pcall(led, headers, from, told) then
      -- Half done it could tell an address that is ours: then nothing is told.
      for _, name in ipairs(FIELDS) do headers:remove(name) end
    end
  end
end
