-- A cron: a run that is started again and again by the clock. Written by the API; the
-- sweeper that fires it moves next_run_at on in the transaction that creates the run. Goes
-- with its assistant or its thread, or when a client deletes it.
CREATE TABLE crons (
    cron_id          uuid PRIMARY KEY,
    assistant_id     uuid NOT NULL REFERENCES assistants ON DELETE CASCADE,
    -- its runs queue on this thread; NULL: each run gets a thread of its own
    thread_id        uuid REFERENCES threads ON DELETE CASCADE,
    user_id          text,
    schedule         text NOT NULL,     -- five fields: minute hour day month weekday
    timezone         text,              -- IANA name; NULL: UTC
    end_time         timestamptz,       -- fires before this only
    enabled          boolean NOT NULL DEFAULT true,
    -- stateless crons: what becomes of the thread when its run ends
    on_run_completed text CHECK (on_run_completed IN ('delete', 'keep')),
    metadata         jsonb NOT NULL DEFAULT '{}',
    -- what the client asked for, run options included; the runs are made from it
    payload          jsonb NOT NULL,
    -- The tick that is due next, also while the cron is disabled. NULL: none comes before end_time.
    next_run_at      timestamptz,
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now()
);
-- sweeper: ticks that are due
CREATE INDEX crons_due_idx ON crons (next_run_at, cron_id) WHERE enabled AND next_run_at IS NOT NULL;
-- search, and deletion along with an assistant or a thread
CREATE INDEX crons_assistant_id_idx ON crons (assistant_id);
CREATE INDEX crons_thread_id_idx ON crons (thread_id) WHERE thread_id IS NOT NULL;
-- search: newest first, by metadata
CREATE INDEX crons_created_at_idx ON crons (created_at DESC);
CREATE INDEX crons_metadata_idx ON crons USING gin (metadata jsonb_path_ops);
