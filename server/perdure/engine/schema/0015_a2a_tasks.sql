-- tasklist: the runs that messages of A2A have begun, of one assistant
CREATE INDEX runs_a2a_idx ON runs (assistant_id, thread_id) WHERE metadata ? 'a2a_message_id';
