-- interrupts: newest questions of an agent, of a status or of any
CREATE INDEX interrupts_agent_status_idx ON interrupts (graph_id, status, created_at DESC, token DESC);
CREATE INDEX interrupts_agent_idx ON interrupts (graph_id, created_at DESC, token DESC);
