-- The outbox of webhooks.

-- The end of a run that somebody wants to be told about. Written in the transaction that
-- makes the run's status final, so there is one exactly if the run has ended. It refers to no
-- thread: those of stateless runs are deleted before a slow receiver has answered.
-- Delivered rows go after a day, failed ones after 30 days; both earlier with their thread,
-- unless it was a temporary one.
CREATE TABLE webhooks (
    thread_id     uuid NOT NULL,
    webhook_id    uuid NOT NULL DEFAULT gen_random_uuid(),  -- the same in every try: receivers tell repeats by it
    run_id        uuid NOT NULL,
    url           text NOT NULL,
    host          text NOT NULL,      -- of the url, with its port: one slow receiver must not hold up others
    -- pending -> delivered (answered with 2xx) | failed (tries used up, or refused by the rules)
    status        text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'delivered', 'failed')),
    -- pending only: when it is due. While a process is sending, when that process counts as
    -- dead and another one sends again.
    next_at       timestamptz DEFAULT now(),
    attempt       integer NOT NULL DEFAULT 0,  -- tries begun so far
    run           jsonb,              -- the run's row as it ended; NULL once delivered
    checkpoint_id text,               -- the thread's head then: the final values; NULL: it has no state
    temporary     boolean NOT NULL,   -- the thread was made for this run and goes with it
    http_status   integer,            -- of the last answer
    error         text,               -- why the last try failed
    created_at    timestamptz NOT NULL DEFAULT now(),
    settled_at    timestamptz,
    PRIMARY KEY (thread_id, webhook_id)
);
-- claim: what is due
CREATE INDEX webhooks_next_at_idx ON webhooks (next_at) WHERE next_at IS NOT NULL;
-- retention
CREATE INDEX webhooks_settled_at_idx ON webhooks (settled_at) WHERE settled_at IS NOT NULL;
