-- How entries count, for the writer (apply.sql) and for everyone who computes sums again (queries.sql).
-- Temporary objects: the file keeps its tables only, so that a change here needs no migration.

-- An entry's signed sums.
CREATE TEMP VIEW booked AS SELECT
  seq, at_us, project, agent, session, user, key, tags, other, provider, served AS model,
  at_us - at_us % 3600000000 AS hour_us,
  sign * calls AS calls, sign AS attempts, sign * (outcome IN ('error', 'cut')) AS errors,
  {signed}, sign * ifnull(amount_nanos, 0) AS amount_nanos,
  sign * iif(status = 'priced', 0, ifnull(amount_nanos, 0)) AS inexact_nanos, sign * (amount_nanos IS NULL) AS unpriced
FROM entry;

-- The entries under consideration, summed by hour and by all that they are counted by. Filled before `piece` is read:
-- many entries become few rows here, and only then many cells.
CREATE TEMP TABLE part AS
SELECT {counted}, {names}
FROM booked LIMIT 0;

-- The same once for each scope that it has; `tag` has one row a tag.
CREATE TEMP VIEW scoped AS
SELECT b.*, s.scope, CASE s.scope
    WHEN 'project' THEN '' WHEN 'agent' THEN agent WHEN 'session' THEN session WHEN 'user' THEN user ELSE key END AS name
FROM part b CROSS JOIN (SELECT column1 AS scope FROM (VALUES ('project'), ('agent'), ('session'), ('user'), ('key'))) s
WHERE name IS NOT NULL
UNION ALL
SELECT b.*, 'tag', t.value FROM part b, json_each(b.tags) t WHERE b.tags IS NOT NULL;

-- The same once for each period: what `part` adds to each cell. Ids past the cardinality cap count under _other.
CREATE TEMP VIEW piece AS SELECT
  p.period, scope,
  CASE p.period
    WHEN 'hour' THEN hour_us
    WHEN 'day' THEN hour_us - hour_us % 86400000000
    ELSE unixepoch(hour_us / 1000000, 'unixepoch', 'start of month') * 1000000 END AS start_us,
  CASE WHEN scope = 'key' THEN '' WHEN other LIKE '%"project"%' THEN '_other' ELSE project END AS project,
  CASE WHEN name <> '' AND other LIKE '%"' || scope || '"%' THEN '_other' ELSE name END AS id,
  provider, model, {names}
FROM scoped CROSS JOIN (SELECT column1 AS period FROM (VALUES ('hour'), ('day'), ('month'))) p;
