-- Why the last tick of a cron has started no run: {error, message, at}. NULL once one has.
ALTER TABLE crons ADD COLUMN error jsonb;
