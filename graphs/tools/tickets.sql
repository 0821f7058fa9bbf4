-- The tickets of the pattern `crm`: a row is one ticket. Written by graphs/tools/tickets.py; it stays.

CREATE SCHEMA IF NOT EXISTS crm;

CREATE TABLE IF NOT EXISTS crm.tickets (
    number      bigint GENERATED ALWAYS AS IDENTITY (START WITH 1001) PRIMARY KEY,
    user_id     text NOT NULL,
    title       text NOT NULL,
    description text NOT NULL,
    opened_at   timestamptz NOT NULL DEFAULT now()
);
