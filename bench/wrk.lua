-- What wrk asks for: the paths behind "--" in turn. What it found: one line of JSON.

local requests = {}
local number = 0

function init(paths)
    for position, path in ipairs(paths) do
        requests[position] = wrk.format("GET", path)
    end
end

function request()
    number = number % #requests + 1
    return requests[number]
end

function done(summary, latency)
    local failed = {}
    for _, kind in ipairs({"connect", "read", "write", "status", "timeout"}) do
        table.insert(failed, string.format('"%s": %d', kind, summary.errors[kind]))
    end
    -- Times are in microseconds.
    print(string.format(
        '{"requests": %d, "seconds": %f, "p50": %f, "p99": %f, "failed": {%s}}',
        summary.requests,
        summary.duration / 1e6,
        latency:percentile(50) / 1e6,
        latency:percentile(99) / 1e6,
        table.concat(failed, ", ")
    ))
end
