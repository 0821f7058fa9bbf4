-- What the console looks for, by index: no page of it reads a whole table (tests/engine/test_plans.py).

-- finding: newest runs of some statuses, over all agents
CREATE INDEX runs_status_idx ON runs (status, created_at DESC, queue_no DESC);
-- finding: newest runs of an agent, of some statuses
CREATE INDEX runs_agent_idx ON runs (graph_id, status, created_at DESC, queue_no DESC);
-- figures: what has ended lately
CREATE INDEX runs_ended_at_idx ON runs (ended_at DESC) WHERE ended_at IS NOT NULL;
-- finding: threads of a status, last touched first
CREATE INDEX threads_status_idx ON threads (status, updated_at DESC, thread_id DESC);
-- finding: threads of any status, last touched first, from a place on; instead of the one without the id
CREATE INDEX threads_newest_idx ON threads (updated_at DESC, thread_id DESC);
DROP INDEX threads_updated_at_idx;
-- figures: tokens of the model calls lately
CREATE INDEX steps_model_idx ON steps (updated_at DESC) WHERE attempts @? '$[*].model';

-- A query that somebody wants to run again. Written by the console; goes when it is deleted there.
CREATE TABLE saved_queries (
    name       text PRIMARY KEY,
    sql        text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
