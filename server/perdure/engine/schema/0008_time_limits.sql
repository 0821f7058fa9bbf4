-- How long a run may take.

-- In seconds from its first start, waits included; NULL: as long as it likes. Written with the run.
ALTER TABLE runs ADD COLUMN max_seconds float8;
-- When that time is over: set when the run is first claimed, and again after a person resumed it.
ALTER TABLE runs ADD COLUMN overdue_at timestamptz;
-- sweeper: runs that take too long
CREATE INDEX runs_overdue_idx ON runs (overdue_at)
    WHERE overdue_at IS NOT NULL AND status IN ('pending', 'running', 'suspended');
