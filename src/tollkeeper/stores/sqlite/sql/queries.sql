-- Named queries of the readers and the owner. `-- name: x` starts each one.

-- name: entry
SELECT seq, {columns} FROM entry WHERE project = :project AND id = :id ORDER BY revision DESC, sign DESC LIMIT 1;

-- name: known
-- Every revision of many entries, the one that stands last.
SELECT seq, {columns} FROM entry
WHERE (project, id) IN (SELECT value ->> 0, value ->> 1 FROM json_each(:names)) ORDER BY revision, sign;

-- name: revisions
SELECT seq, {columns} FROM entry WHERE project = :project AND id = :id AND sign = 1 ORDER BY revision;

-- name: rows
SELECT seq, {columns} FROM entry WHERE seq > :after AND seq <= :upto ORDER BY seq LIMIT :most;

-- name: project_rows
-- By place, not by project (+): all pages of one project together read the table once, with no index that every entry pays for.
SELECT seq, {columns} FROM entry WHERE seq > :after AND seq <= :upto AND +project = :project ORDER BY seq LIMIT :most;

-- name: behind
SELECT count(*) FROM entry WHERE seq > :after AND +project = :project;

-- name: projects
SELECT project, max(seq) FROM entry GROUP BY project;

-- name: places
-- Between which places in the ledger the entries of a time stand now.
SELECT min(seq), max(seq) FROM entry WHERE at_us >= :from_us AND at_us < :to_us;

-- name: entries
-- By place, not by time (+): a page goes on where the last one ended, instead of sorting the whole time again.
SELECT seq, {columns} FROM entry
WHERE seq > :after AND seq <= :last AND +at_us >= :from_us AND +at_us < :to_us AND (:project IS NULL OR project = :project)
ORDER BY seq LIMIT :most;

-- name: current
-- What stood when the newest entry was `last`.
SELECT seq, {columns} FROM entry AS each
WHERE seq > :after AND seq <= :last AND +at_us >= :from_us AND +at_us < :to_us AND (:project IS NULL OR project = :project)
  AND sign = 1 AND NOT EXISTS (
    SELECT 1 FROM entry AS reversal
    WHERE reversal.project = each.project AND reversal.id = each.id AND reversal.revision = each.revision
      AND reversal.sign = -1 AND reversal.seq <= :last)
ORDER BY seq LIMIT :most;

-- The entries under consideration (views.sql): what no cell holds yet, what the cells hold, and those of a time.
-- name: part_unrolled
DELETE FROM part;
INSERT INTO part SELECT {counted}, {sums} FROM booked
WHERE seq > (SELECT value FROM mark WHERE name = 'rolled') GROUP BY {counted};

-- name: part_rolled
DELETE FROM part;
INSERT INTO part SELECT {counted}, {sums} FROM booked
WHERE seq <= (SELECT value FROM mark WHERE name = 'rolled') GROUP BY {counted};

-- name: part_between
DELETE FROM part;
INSERT INTO part SELECT {counted}, {sums} FROM booked
WHERE at_us >= :from_us AND at_us < :to_us AND (:project IS NULL OR project = :project) GROUP BY {counted};

-- name: part_older
DELETE FROM part;
INSERT INTO part SELECT {counted}, {sums} FROM booked
WHERE at_us < (SELECT value FROM mark WHERE name = 'entry') AND seq <= (SELECT value FROM mark WHERE name = 'rolled')
GROUP BY {counted};

-- name: pruned
-- What the cells have of entries that are pruned: the cells of before that instant, without what the entries still there add.
SELECT period, start_us, scope, project, id, provider, model, {sums}
FROM (SELECT * FROM cell UNION ALL SELECT period, scope, start_us, project, id, provider, model, {negated} FROM piece)
WHERE start_us < (SELECT value FROM mark WHERE name = 'entry')
  AND start_us >= (SELECT value FROM mark WHERE name = period)
GROUP BY project, period, start_us, scope, id, provider, model
ORDER BY project;

-- name: cells
SELECT period, start_us, scope, project, id, provider, model, {sums}
FROM (SELECT * FROM cell UNION ALL SELECT * FROM piece)
WHERE period = :period AND scope = :scope AND start_us >= :from_us AND start_us < :to_us
  AND (:project IS NULL OR project = :project) AND (:id IS NULL OR id = :id)
GROUP BY period, start_us, scope, project, id, provider, model
ORDER BY start_us, project, id, provider, model;

-- name: tally
SELECT 'hour', :from_us, scope, project, id, provider, model, {sums}
FROM piece
WHERE period = 'hour' AND scope = :scope AND (:project IS NULL OR project = :project) AND (:id IS NULL OR id = :id)
GROUP BY scope, project, id, provider, model
ORDER BY project, id, provider, model;

-- name: wrong_cells
-- Cells that differ from their entries, in either direction.
WITH since AS (SELECT name AS period, max(value, (SELECT value FROM mark WHERE name = 'entry')) AS start_us FROM mark),
right AS (
  SELECT period, scope, start_us, project, id, provider, model, {sums}
  FROM piece GROUP BY period, scope, start_us, project, id, provider, model
),
stored_only AS (SELECT 'stored' AS side, * FROM (SELECT * FROM cell EXCEPT SELECT * FROM right)),
right_only AS (SELECT 'entries' AS side, * FROM (SELECT * FROM right EXCEPT SELECT * FROM cell))
SELECT d.* FROM (SELECT * FROM stored_only UNION ALL SELECT * FROM right_only) d JOIN since USING (period)
WHERE d.start_us >= since.start_us
ORDER BY d.period, d.scope, d.start_us, d.project, d.id, d.provider, d.model, side;

-- name: ids
-- The ids of one scope that have a cell in a month: what the census has counted.
SELECT DISTINCT iif(scope = 'project', project, id) FROM cell
WHERE period = 'month' AND scope = :scope AND start_us = :month_us AND (scope = 'project' OR project = :project);

-- name: balance
SELECT spent FROM balance
WHERE scope = :scope AND measure = :measure AND period = :period AND timezone = :timezone AND project = :project AND id = :id
  AND start_us = :start_us;

-- name: windows
SELECT DISTINCT scope, measure, period, timezone, start_us, end_us FROM balance ORDER BY 1, 2, 3, 4, 5;

-- name: balances
SELECT project, id, spent FROM balance
WHERE scope = :scope AND measure = :measure AND period = :period AND timezone = :timezone AND start_us = :start_us AND spent <> 0;

-- name: spent
-- What the entries of one window add to each balance of a scope.
SELECT
  iif(:scope IN ('all', 'key', 'model'), '', project) AS project_of,
  CASE :scope WHEN 'all' THEN '' WHEN 'project' THEN '' WHEN 'agent' THEN agent WHEN 'session' THEN session
    WHEN 'user' THEN user WHEN 'key' THEN entry.key WHEN 'model' THEN model WHEN 'tag' THEN tag.value END AS id_of,
  sum(sign * CASE :measure
    WHEN 'usd' THEN ifnull(amount_nanos, 0)
    WHEN 'tokens' THEN {tokens}
    ELSE 1 END) AS spent
FROM entry LEFT JOIN json_each(iif(:scope = 'tag', tags, NULL)) AS tag
WHERE at_us >= :start_us AND at_us < :end_us AND id_of IS NOT NULL
GROUP BY project_of, id_of HAVING spent <> 0;

-- name: first
SELECT min(at_us) FROM entry WHERE at_us >= :from_us;

-- name: shapes
SELECT scope, measure, period, timezone FROM shape;

-- name: marks
SELECT name, value FROM mark;

-- name: size
SELECT (SELECT count(*) FROM entry), (SELECT count(*) FROM cell), (SELECT count(*) FROM balance);

-- name: holds
SELECT doc FROM hold;
