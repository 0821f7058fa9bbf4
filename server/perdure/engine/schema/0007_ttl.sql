-- How long threads stay, and what finding an open saga needs.

-- How long the thread stays after updated_at, and what becomes of it then; NULL: it stays. Written
-- when the thread is made, and by a client. (expires_at is for the threads of stateless runs.)
ALTER TABLE threads ADD COLUMN ttl interval;
ALTER TABLE threads ADD COLUMN ttl_strategy text CHECK (ttl_strategy IN ('delete', 'keep_latest'));
-- when the thread has last lost its old checkpoints
ALTER TABLE threads ADD COLUMN pruned_at timestamptz;
-- sweeper: threads whose time to live is over; one that was pruned is not due again before its next update
CREATE INDEX threads_ttl_idx ON threads (((updated_at AT TIME ZONE 'UTC') + ttl))
    WHERE ttl IS NOT NULL AND (ttl_strategy = 'delete' OR pruned_at IS NULL OR pruned_at < updated_at);

-- claim and cancel: whether the thread has an open saga. Other steps are hardly ever open.
CREATE INDEX steps_open_idx ON steps (thread_id) WHERE status = 'open';

-- runs.cancelling is also 'kill', of a run that was killed: its children are killed, too.
COMMENT ON COLUMN runs.cancelling IS 'interrupt, rollback: undos are to run before it ends so; kill: it has ended without';
