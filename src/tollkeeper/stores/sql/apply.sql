-- What the writer does, each as one statement, so that it is one transaction and holds no interpreter lock meanwhile.

-- INSERT INTO batch(doc) VALUES (jsonb(json)) applies a batch: entries, balances and holds change together. Binary JSON is
-- parsed once, not again for each list in it.
-- doc: {number, holds: [[id, json]], gone: [id], entries: [[…43 columns]], balances: [[…8 columns, amount]]}

CREATE TEMP VIEW batch AS SELECT NULL AS doc;

CREATE TEMP TRIGGER apply INSTEAD OF INSERT ON batch BEGIN
  INSERT INTO hold SELECT value ->> 0, value ->> 1 FROM jsonb_each(NEW.doc, '$.holds');

  DELETE FROM hold WHERE id IN (SELECT value FROM jsonb_each(NEW.doc, '$.gone'));

  INSERT INTO entry (
    project, id, revision, sign, call, attempt, calls, at_us, agent, session, user, key, tags, other, dialect, provider,
    model, served, tier, outcome, http_status, input, cache_read, cache_write_5m, cache_write_1h, output, input_audio,
    cache_read_audio, output_audio, input_image, output_image, web_search, file_search, reasoning, amount_nanos,
    computed_nanos, reported_nanos, status, price_version, terms, missing, latency_ms, note)
  SELECT
    value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7, value ->> 8,
    value ->> 9, value ->> 10, value ->> 11, value ->> 12, value ->> 13, value ->> 14, value ->> 15, value ->> 16,
    value ->> 17, value ->> 18, value ->> 19, value ->> 20, value ->> 21, value ->> 22, value ->> 23, value ->> 24,
    value ->> 25, value ->> 26, value ->> 27, value ->> 28, value ->> 29, value ->> 30, value ->> 31, value ->> 32,
    value ->> 33, value ->> 34, value ->> 35, value ->> 36, value ->> 37, value ->> 38, value ->> 39, value ->> 40,
    value ->> 41, value ->> 42
  FROM jsonb_each(NEW.doc, '$.entries');

  INSERT INTO balance
  SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7, value ->> 8
  FROM jsonb_each(NEW.doc, '$.balances') WHERE true
  ON CONFLICT DO UPDATE SET spent = spent + excluded.spent;

  UPDATE mark SET value = NEW.doc ->> '$.number' WHERE name = 'batch';
END;

-- INSERT INTO roll VALUES (NULL) brings the cells up to the newest entry. Until then readers add what is not rolled yet,
-- so that a cell is never behind for anyone who asks.
CREATE TEMP VIEW roll AS SELECT NULL AS now;

CREATE TEMP TRIGGER rollup INSTEAD OF INSERT ON roll BEGIN
  DELETE FROM part;
  INSERT INTO part
  SELECT hour_us, project, agent, session, user, key, tags, other, provider, model,
    sum(calls), sum(attempts), sum(errors), sum(input), sum(cache_read), sum(cache_write_5m), sum(cache_write_1h),
    sum(output), sum(input_audio), sum(cache_read_audio), sum(output_audio), sum(input_image), sum(output_image),
    sum(web_search), sum(file_search), sum(reasoning), sum(amount_nanos), sum(inexact_nanos), sum(unpriced)
  FROM booked WHERE seq > (SELECT value FROM mark WHERE name = 'rolled')
  GROUP BY hour_us, project, agent, session, user, key, tags, other, provider, model;

  INSERT INTO cell
  SELECT
    period, scope, start_us, project, id, provider, model,
    sum(calls), sum(attempts), sum(errors), sum(input), sum(cache_read), sum(cache_write_5m), sum(cache_write_1h),
    sum(output), sum(input_audio), sum(cache_read_audio), sum(output_audio), sum(input_image), sum(output_image),
    sum(web_search), sum(file_search), sum(reasoning), sum(amount_nanos), sum(inexact_nanos), sum(unpriced)
  FROM piece
  WHERE true
  GROUP BY period, scope, start_us, project, id, provider, model
  ON CONFLICT DO UPDATE SET
    calls = calls + excluded.calls, attempts = attempts + excluded.attempts, errors = errors + excluded.errors,
    input = input + excluded.input, cache_read = cache_read + excluded.cache_read,
    cache_write_5m = cache_write_5m + excluded.cache_write_5m, cache_write_1h = cache_write_1h + excluded.cache_write_1h,
    output = output + excluded.output, input_audio = input_audio + excluded.input_audio,
    cache_read_audio = cache_read_audio + excluded.cache_read_audio, output_audio = output_audio + excluded.output_audio,
    input_image = input_image + excluded.input_image, output_image = output_image + excluded.output_image,
    web_search = web_search + excluded.web_search, file_search = file_search + excluded.file_search,
    reasoning = reasoning + excluded.reasoning, amount_nanos = amount_nanos + excluded.amount_nanos,
    inexact_nanos = inexact_nanos + excluded.inexact_nanos, unpriced = unpriced + excluded.unpriced;

  UPDATE mark SET value = (SELECT ifnull(max(seq), 0) FROM entry) WHERE name = 'rolled';
END;
