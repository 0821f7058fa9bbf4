-- The attempts of a run are told by its lifecycle events, among perhaps thousands of others.

-- attempts, lifecycle_before: those of one run
CREATE INDEX run_events_lifecycle_idx ON run_events (thread_id, run_id, seq) WHERE event = 'lifecycle';
