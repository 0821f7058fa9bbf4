-- What the console's inbox and schedules look for, by index.

-- interrupts: newest questions of a status
CREATE INDEX interrupts_status_idx ON interrupts (status, created_at DESC, token DESC);
-- crons: newest runs that a cron has started
CREATE INDEX runs_cron_idx ON runs ((metadata ->> 'cron_id'), created_at DESC) WHERE metadata ? 'cron_id';
