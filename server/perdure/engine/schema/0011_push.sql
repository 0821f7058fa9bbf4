-- Push notifications of A2A tasks.

-- Whom to tell when a task (a run, and the runs that took its answers) ends or asks. Written by the API;
-- goes with its thread, or when a client deletes it.
CREATE TABLE push_configs (
    thread_id   uuid NOT NULL REFERENCES threads ON DELETE CASCADE,
    run_id      uuid NOT NULL,          -- the run that the task began with
    config_id   text NOT NULL,          -- the client's name for it
    push_id     uuid NOT NULL DEFAULT gen_random_uuid() UNIQUE,
    url         text NOT NULL,
    token       text,                   -- sent back to the receiver, which knows us by it
    scheme      text,                   -- of the Authorization header
    credentials text,
    version     text NOT NULL,          -- of A2A, in which the receiver is spoken to
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (thread_id, run_id, config_id)
);

-- a webhook that is such a notification; its body is made when it is sent
ALTER TABLE webhooks ADD COLUMN push_id uuid;
