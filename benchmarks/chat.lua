-- wrk script: an OpenAI chat request of about 1 KB. Its KEY comes from the environment.
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer " .. (os.getenv("KEY") or "sk-bench")
wrk.headers["x-tollkeeper-agent"] = "load"
wrk.headers["x-tollkeeper-session"] = "bench-1"
wrk.body = '{"model":"gpt-4o-mini","messages":[{"role":"system","content":"You are a helpful assistant."},{"role":"user","content":"'
  .. string.rep("Tell me about gateways. ", 35) .. '"}],"max_tokens":256}'

-- The last line of the output is what is read: counts, microseconds.
function done(summary, latency)
  local errors = summary.errors
  io.write(string.format('{"requests":%d,"micros":%d,"p50_us":%d,"p99_us":%d,"failed":%d}\n', summary.requests,
    summary.duration, latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
