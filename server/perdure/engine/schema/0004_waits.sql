-- What suspended runs wait for. A timer needs no table: it is the `ready_at` of the run.

-- A run that waits for the run of a child thread. Written by the parent's attempt before
-- it looks at the child; goes when the child is done, and with the parent's thread.
CREATE TABLE child_waits (
    child_thread_id  uuid NOT NULL,
    child_run_id     uuid NOT NULL,
    parent_thread_id uuid NOT NULL REFERENCES threads ON DELETE CASCADE,
    parent_run_id    uuid NOT NULL,
    PRIMARY KEY (child_thread_id, child_run_id, parent_thread_id, parent_run_id)
);
CREATE INDEX child_waits_parent_idx ON child_waits (parent_thread_id);

-- A place under a fleet-wide limit. Counts only while its thread still has this fence, so a
-- worker that dies gives its places back when its runs are taken over.
CREATE TABLE limit_places (
    name      text NOT NULL,
    thread_id uuid NOT NULL REFERENCES threads ON DELETE CASCADE,
    run_id    uuid NOT NULL,
    fence     bigint NOT NULL,
    place     text NOT NULL,      -- which call of the run holds it
    PRIMARY KEY (name, thread_id, place)
);
CREATE INDEX limit_places_thread_idx ON limit_places (thread_id);

-- A run that waits for such a place, first come first served. Goes when it is woken.
CREATE TABLE limit_waiters (
    name      text NOT NULL,
    waiter_no bigint GENERATED ALWAYS AS IDENTITY,
    thread_id uuid NOT NULL REFERENCES threads ON DELETE CASCADE,
    run_id    uuid NOT NULL,
    PRIMARY KEY (name, thread_id, run_id)
);
CREATE INDEX limit_waiters_order_idx ON limit_waiters (name, waiter_no);
CREATE INDEX limit_waiters_thread_idx ON limit_waiters (thread_id);

-- A message to a running run, taken by its next `mailbox()`. Goes with its thread.
CREATE TABLE messages (
    thread_id  uuid NOT NULL REFERENCES threads ON DELETE CASCADE,
    message_no bigint GENERATED ALWAYS AS IDENTITY,
    message    jsonb NOT NULL,
    sent_at    timestamptz NOT NULL DEFAULT now(),
    taken_at   timestamptz,
    PRIMARY KEY (thread_id, message_no)
);
