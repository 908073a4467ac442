-- wrk's script: heads of about 250 bytes that the rules allow; paths, queries and header values vary from request to
-- request, so that a proxy that caches by the whole head does not look faster than it is. All are made before the
-- first is sent. Arguments: the number of rules, and "close" for a new connection for each request.
-- Its last line of output is one JSON object.

local VARIANTS = 4096
local made = {}
local number = 0

function init(args)
   local rules = tonumber(args[1])
   local agents = { "curl/8.9.1", "python-requests/2.32.3", "Go-http-client/1.1", "okhttp/4.12.0" }
   math.randomseed(7)
   for n = 1, VARIANTS do
      local path = string.format("/api/s%d/users/%d/items/%d?page=%d",
         math.random(0, rules - 1), math.random(0, 999999), math.random(0, 999), math.random(0, 49))
      local headers = {
         ["User-Agent"] = agents[math.random(#agents)],
         ["Accept"] = "application/json",
         ["X-Request-Id"] = string.format("%08x%08x%08x%08x", math.random(0, 2 ^ 31 - 1), math.random(0, 2 ^ 31 - 1),
            math.random(0, 2 ^ 31 - 1), n),
         ["X-Token"] = string.format("%08x", math.random(0, 2 ^ 31 - 1)),
      }
      if args[2] == "close" then headers["Connection"] = "close" end
      made[n] = wrk.format("GET", path, headers)
   end
end

function request()
   number = number % VARIANTS + 1
   return made[number]
end

function done(summary, latency, _)
   local errors = summary.errors
   io.write(string.format(
      '\n{"requests": %d, "seconds": %.6f, "p50_us": %d, "p99_us": %d, "bad_status": %d, "broken": %d}\n',
      summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
      errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
