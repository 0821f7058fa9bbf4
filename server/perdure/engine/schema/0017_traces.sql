-- Traces (engine/tracing): which one a run belongs to, and when its last attempt began. All are written
-- whether or not this process sends any: others may.

-- What the run's span stands below, as a W3C traceparent: of the request that asked for the run, or for a child
-- of the attempt that started it. Written when the run is made. NULL: the run begins a trace, whose id is its own.
ALTER TABLE runs ADD COLUMN trace text;
-- When the run was last claimed. Whoever takes it from a worker that is gone tells the trace of that attempt.
ALTER TABLE runs ADD COLUMN claimed_at timestamptz;
-- The traceparent that the other server is sent: of the attempt that made the call.
ALTER TABLE remote_calls ADD COLUMN trace text;
