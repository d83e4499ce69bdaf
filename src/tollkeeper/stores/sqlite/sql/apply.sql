-- What the writer does, each as one statement, so that it is one transaction and holds no interpreter lock meanwhile.

-- INSERT INTO batch(doc) VALUES (jsonb(json)) applies a batch: entries, balances and holds change together. Binary JSON is
-- parsed once, not again for each list in it.
-- doc: {number, last, holds: [[id, json]], gone: [id], entries: [[columns]], balances: [[…8 columns, amount]]}
-- Entries get the places after `last`, one after the other, and move that mark.

CREATE TEMP VIEW batch AS SELECT NULL AS doc;

CREATE TEMP TRIGGER apply INSTEAD OF INSERT ON batch BEGIN
  INSERT INTO hold SELECT value ->> 0, value ->> 1 FROM jsonb_each(NEW.doc, '$.holds');

  DELETE FROM hold WHERE id IN (SELECT value FROM jsonb_each(NEW.doc, '$.gone'));

  INSERT INTO entry (seq, {columns})
  SELECT (NEW.doc ->> '$.last') + key + 1, {values} FROM jsonb_each(NEW.doc, '$.entries');

  INSERT INTO balance
  SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7, value ->> 8
  FROM jsonb_each(NEW.doc, '$.balances') WHERE true
  ON CONFLICT DO UPDATE SET spent = spent + excluded.spent;

  UPDATE mark SET value = NEW.doc ->> '$.number' WHERE name = 'batch';
  UPDATE mark SET value = value + json_array_length(NEW.doc, '$.entries') WHERE name = 'last';
END;

-- INSERT INTO roll VALUES (NULL) brings the cells up to the newest entry. Until then readers add what is not rolled yet,
-- so that a cell is never behind for anyone who asks.
CREATE TEMP VIEW roll AS SELECT NULL AS now;

CREATE TEMP TRIGGER rollup INSTEAD OF INSERT ON roll BEGIN
  DELETE FROM part;
  INSERT INTO part SELECT {counted}, {sums} FROM booked
  WHERE seq > (SELECT value FROM mark WHERE name = 'rolled') GROUP BY {counted};

  INSERT INTO cell
  SELECT
    period, scope, start_us, project, id, provider, model, {sums}
  FROM piece
  WHERE true
  GROUP BY period, scope, start_us, project, id, provider, model
  ON CONFLICT DO UPDATE SET {added};

  UPDATE mark SET value = (SELECT value FROM mark WHERE name = 'last') WHERE name = 'rolled';
END;
