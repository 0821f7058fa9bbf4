-- Child runs on other servers.

-- A run that a run of ours has started, or is about to start, on another server by
-- `agent(…, server=…)`. Written by the caller's attempt (fenced); from then on whoever has
-- claimed it speaks to the other server and writes down what that said. It refers to no
-- thread: a cancel outlives the caller. Settled rows go a day later, unless the caller may
-- still look; what nobody waits for is given up after 30 days.
CREATE TABLE remote_calls (
    thread_id        uuid NOT NULL,     -- of the caller
    call_id          uuid NOT NULL,     -- made from the step's idempotency key; without `key` the thread's id there
    run_id           uuid NOT NULL,     -- the run that waits
    bound            boolean NOT NULL,  -- cancelled with that run; false: handed over, nobody waits
    server           text NOT NULL,
    host             text NOT NULL,     -- of the server, with its port: a slow one must not hold up others
    agent            text NOT NULL,
    key              text,
    input            json,              -- NULL once it is settled
    callers          jsonb NOT NULL DEFAULT '[]',  -- threads that wait for this call, outermost first
    available_at     timestamptz NOT NULL,
    token            text NOT NULL UNIQUE,  -- in the address that the other server calls; unguessable
    callback_url     text,              -- NULL: it does not call us, we ask
    -- starting -> running -> done | failed | cancelled | gone; each of the last four is final
    status           text NOT NULL DEFAULT 'starting'
                     CHECK (status IN ('starting', 'running', 'done', 'failed', 'cancelled', 'gone')),
    cancelling       boolean NOT NULL DEFAULT false,  -- the other server is to be told, until it has answered
    plain            boolean NOT NULL DEFAULT false,  -- an Agent Server that is not perdure: no outcome route
    remote_thread_id text,
    remote_run_id    text,
    output           json,
    error            jsonb,             -- {error, message, status} of a failed one
    -- When it is due. While a process speaks to the other server (`speaking`), when that
    -- process counts as dead. NULL: settled.
    next_at          timestamptz DEFAULT now(),
    speaking         boolean NOT NULL DEFAULT false,
    nudged           boolean NOT NULL DEFAULT false,  -- something happened meanwhile: look again at once
    attempt          integer NOT NULL DEFAULT 0,      -- times claimed; only the last one may write
    tries            integer NOT NULL DEFAULT 0,      -- in a row without news, for the back-off
    problem          text,              -- why the last try failed
    created_at       timestamptz NOT NULL DEFAULT now(),
    settled_at       timestamptz,
    PRIMARY KEY (thread_id, call_id)
);
-- claim: what is due
CREATE INDEX remote_calls_next_at_idx ON remote_calls (next_at) WHERE next_at IS NOT NULL;
-- sweeper: calls whose caller is gone
CREATE INDEX remote_calls_bound_idx ON remote_calls (thread_id, run_id)
    WHERE bound AND NOT cancelling AND settled_at IS NULL;
-- retention
CREATE INDEX remote_calls_settled_at_idx ON remote_calls (settled_at) WHERE settled_at IS NOT NULL;
