-- The engine's tables. LangGraph's own tables (checkpoints, checkpoint_blobs,
-- checkpoint_writes, store) are created by LangGraph's migrations beside these.
--
-- `thread_id` leads every primary key and every hot statement, so that threads can
-- be spread over several databases.

-- An assistant is a graph with a configuration. Written by the API only; one default
-- assistant per graph is made at start. Goes when a client deletes it.
CREATE TABLE assistants (
    assistant_id uuid PRIMARY KEY,
    graph_id     text NOT NULL,
    name         text NOT NULL,
    description  text,
    config       jsonb NOT NULL DEFAULT '{}',
    context      jsonb NOT NULL DEFAULT '{}',
    metadata     jsonb NOT NULL DEFAULT '{}',
    version      integer NOT NULL DEFAULT 1,
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now()
);
-- search by graph and by metadata
CREATE INDEX assistants_graph_id_idx ON assistants (graph_id, created_at DESC);
CREATE INDEX assistants_metadata_idx ON assistants USING gin (metadata jsonb_path_ops);

-- Every version an assistant has had, the current one included.
CREATE TABLE assistant_versions (
    assistant_id uuid NOT NULL REFERENCES assistants ON DELETE CASCADE,
    version      integer NOT NULL,
    graph_id     text NOT NULL,
    name         text NOT NULL,
    description  text,
    config       jsonb NOT NULL,
    context      jsonb NOT NULL,
    metadata     jsonb NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (assistant_id, version)
);

-- A thread: one conversation, one queue of runs, one owner at a time. Every
-- transaction that changes who may write locks this row first.
CREATE TABLE threads (
    thread_id        uuid PRIMARY KEY,
    -- Grows with every change of ownership (claim, hand-back, expiry, finish, cancel,
    -- rollback, state update). Each write of a run names the fence it was given; a
    -- stale worker's fence no longer matches, so its write changes nothing.
    -- It begins at the clock, so a thread that was deleted and made again under the same id
    -- (a session) never shares a fence with its predecessor.
    fence            bigint NOT NULL DEFAULT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
    -- The run at the head of the queue: being executed, waiting for its retry, or
    -- paused. NULL: the next pending run may be claimed.
    run_id           uuid,
    -- The seq of the thread's last event. Appending takes its numbers here.
    event_seq        bigint NOT NULL DEFAULT 0,
    -- idle -> busy (a run is pending or running) -> idle | interrupted (the state has
    -- next nodes) | error (the last run failed)
    status           text NOT NULL DEFAULT 'idle'
                     CHECK (status IN ('idle', 'busy', 'interrupted', 'error')),
    error            jsonb,
    -- {task_id: [{id, value}]} of the open questions; NULL before the first run
    interrupts       jsonb,
    metadata         jsonb NOT NULL DEFAULT '{}',
    config           jsonb NOT NULL DEFAULT '{}',
    -- Made for one stateless run: hidden once that run has ended, deleted at expires_at.
    temporary        boolean NOT NULL DEFAULT false,
    -- When the sweeper deletes the thread; NULL: never.
    expires_at       timestamptz,
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    state_updated_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 70);  -- fence and event_seq change often: leave room for HOT updates
-- search: newest first, by metadata
CREATE INDEX threads_updated_at_idx ON threads (updated_at DESC);
CREATE INDEX threads_metadata_idx ON threads USING gin (metadata jsonb_path_ops);
-- sweeper: threads that are due for deletion
CREATE INDEX threads_expires_at_idx ON threads (expires_at) WHERE expires_at IS NOT NULL;

-- A run: one execution of a graph on a thread, in one or more attempts. Goes with its
-- thread, or when a client deletes it.
CREATE TABLE runs (
    thread_id          uuid NOT NULL REFERENCES threads ON DELETE CASCADE,
    run_id             uuid NOT NULL,
    -- the order of creation: runs of a thread are executed in this order
    queue_no           bigint GENERATED ALWAYS AS IDENTITY,
    assistant_id       uuid NOT NULL,
    graph_id           text NOT NULL,
    -- pending -> running -> success | error | timeout | interrupted (cancelled)
    -- running -> pending (handed back, lost worker, retry) | paused (retries used up)
    -- running -> suspended (waits for a timer, a child run, a limit) -> running
    -- paused  -> pending (resumed by a person) | interrupted
    status             text NOT NULL DEFAULT 'pending'
                       CHECK (status IN ('pending', 'running', 'suspended', 'paused', 'success', 'error',
                                         'timeout', 'interrupted')),
    -- pending and suspended: from when on a worker may claim it. NULL: it waits behind
    -- another run of its thread, or for something that has no time.
    ready_at           timestamptz,
    -- when it may start at the earliest (after_seconds)
    available_at       timestamptz NOT NULL DEFAULT now(),
    -- goes before others of its thread: the answer to an open question
    priority           boolean NOT NULL DEFAULT false,
    -- waits while its thread has an open question (calls by key)
    behind_question    boolean NOT NULL DEFAULT false,
    multitask_strategy text NOT NULL DEFAULT 'enqueue',
    metadata           jsonb NOT NULL DEFAULT '{}',
    kwargs             jsonb NOT NULL DEFAULT '{}',
    -- executions started so far, and those that ended in a retryable failure
    attempt            integer NOT NULL DEFAULT 0,
    failures           integer NOT NULL DEFAULT 0,
    -- {error, message} of the last failed attempt; of the run when its status is final
    error              jsonb,
    worker_id          uuid,
    lease_until        timestamptz,
    -- what a running run is about to wait for has happened: do not suspend it
    woken              boolean NOT NULL DEFAULT false,
    -- cancelled with an open saga: how, while its undos run ('interrupt', 'rollback')
    cancelling         text,
    -- the run that started this one by `agent()`, and whether it is cancelled with it
    parent_thread_id   uuid,
    parent_run_id      uuid,
    bound              boolean NOT NULL DEFAULT false,
    -- the thread's head checkpoint when the run was first claimed ('' = none): tells
    -- whether a redelivered command has been applied, and what a rollback returns to
    base_checkpoint_id text,
    -- what that checkpoint held then: writes of commands, and tasks that had written; what
    -- came later is this run's
    base_commands      integer,
    base_tasks         text[],
    -- the thread's event_seq when the run was created: its events come after it
    first_seq          bigint NOT NULL DEFAULT 0,
    created_at         timestamptz NOT NULL DEFAULT now(),
    updated_at         timestamptz NOT NULL DEFAULT now(),
    started_at         timestamptz,
    ended_at           timestamptz,
    PRIMARY KEY (thread_id, run_id)
) WITH (fillfactor = 80);
-- claim: runs that may be started now
CREATE INDEX runs_ready_idx ON runs (ready_at, queue_no) WHERE ready_at IS NOT NULL;
-- promote and cancel: what is queued or running on a thread
CREATE INDEX runs_active_idx ON runs (thread_id, queue_no)
    WHERE status IN ('pending', 'running', 'suspended', 'paused');
-- sweeper: children whose parent is gone
CREATE INDEX runs_bound_idx ON runs (parent_thread_id, parent_run_id)
    WHERE bound AND status IN ('pending', 'running', 'suspended', 'paused');
-- renew and release: the runs of a worker
CREATE INDEX runs_worker_idx ON runs (worker_id) WHERE worker_id IS NOT NULL;
-- list: newest first
CREATE INDEX runs_thread_idx ON runs (thread_id, queue_no DESC);
-- look-up by run id alone (/runs/{run_id})
CREATE INDEX runs_run_id_idx ON runs (run_id);

-- A frame of a stream. Appended by the run's owner (fenced) and by whoever changes the
-- run's status, in the same transaction. Goes with its thread or by retention.
CREATE TABLE run_events (
    thread_id uuid NOT NULL REFERENCES threads ON DELETE CASCADE,
    seq       bigint NOT NULL,
    run_id    uuid NOT NULL,
    at        timestamptz NOT NULL DEFAULT now(),
    event     text NOT NULL,
    -- JSON text as it goes to the wire; for `values` of the root graph NULL, and
    -- checkpoint_id says which state was meant (state is not stored twice)
    data          text,
    checkpoint_id text,
    PRIMARY KEY (thread_id, seq)
);

-- Events that nobody needs any more from purge_at on: a minute after the end of a run whose
-- stream is not resumable, or after its deletion. Goes when the events have gone.
CREATE TABLE purges (
    thread_id uuid NOT NULL REFERENCES threads ON DELETE CASCADE,
    run_id    uuid NOT NULL,
    purge_at  timestamptz NOT NULL DEFAULT now() + interval '1 min',
    PRIMARY KEY (thread_id, run_id)
);
CREATE INDEX purges_purge_at_idx ON purges (purge_at);

-- The journal: one row per step call. Written by the attempt that runs it (fenced).
-- Goes with its thread.
CREATE TABLE steps (
    thread_id   uuid NOT NULL REFERENCES threads ON DELETE CASCADE,
    scope       text NOT NULL,      -- the LangGraph task that ran the node (its checkpoint_ns)
    name        text NOT NULL,
    identity    text NOT NULL,      -- the author's key, or the fingerprint of the arguments
    n           integer NOT NULL,   -- how many calls of the same identity came before it
    call        integer NOT NULL,   -- how many calls of the same name came before it
    run_id      uuid NOT NULL,
    keyed       boolean NOT NULL DEFAULT false,
    -- retrying -> done | failed (terminal error, kept); a saga: open -> done | failed (undone)
    status      text NOT NULL CHECK (status IN ('open', 'retrying', 'done', 'failed')),
    value_type  text,
    value       bytea,
    error       jsonb,
    attempts    jsonb NOT NULL DEFAULT '[]',
    next_at     timestamptz,        -- retrying: when the next attempt is due
    overlapped  boolean NOT NULL DEFAULT false,  -- another step of the scope was in flight meanwhile
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (thread_id, scope, name, identity, n)
);

-- A question to a person (an interrupt). Written when the run that asked it finishes;
-- answered, superseded or timed out exactly once. Goes with its thread.
CREATE TABLE interrupts (
    thread_id     uuid NOT NULL REFERENCES threads ON DELETE CASCADE,
    checkpoint_id text NOT NULL,
    task_id       text NOT NULL,
    n             integer NOT NULL,  -- how many answers the task had before this question
    checkpoint_ns text NOT NULL,
    interrupt_id  text NOT NULL,
    run_id        uuid NOT NULL,
    graph_id      text NOT NULL,
    assistant_id  uuid NOT NULL,
    token         text NOT NULL UNIQUE,  -- unguessable; whoever has it may answer
    question      jsonb NOT NULL,
    deadline      timestamptz,
    -- open -> answered | rejected | timed_out | superseded
    status        text NOT NULL DEFAULT 'open'
                  CHECK (status IN ('open', 'answered', 'rejected', 'timed_out', 'superseded')),
    answer        jsonb,
    answered_at   timestamptz,
    answered_by   text,
    created_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (thread_id, checkpoint_id, task_id, n)
);
-- answer and supersede: the open questions of a thread
CREATE INDEX interrupts_open_idx ON interrupts (thread_id) WHERE status = 'open';
-- sweeper: deadlines that have passed
CREATE INDEX interrupts_deadline_idx ON interrupts (deadline) WHERE status = 'open' AND deadline IS NOT NULL;
-- inbox: newest first
CREATE INDEX interrupts_created_at_idx ON interrupts (created_at DESC);

-- A process that executes runs. It holds the session advisory lock `lock_key` while it
-- lives: whoever can take that lock knows that the worker is dead.
CREATE TABLE workers (
    worker_id  uuid PRIMARY KEY,
    lock_key   bigint NOT NULL UNIQUE,
    name       text NOT NULL,
    slots      integer NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    seen_at    timestamptz NOT NULL DEFAULT now()
);

-- The first answer to a request with an Idempotency-Key header; kept for 24 hours.
CREATE TABLE idempotency_keys (
    key          text PRIMARY KEY,
    request_hash text NOT NULL,
    thread_id    uuid NOT NULL,
    run_id       uuid NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX idempotency_keys_created_at_idx ON idempotency_keys (created_at);
