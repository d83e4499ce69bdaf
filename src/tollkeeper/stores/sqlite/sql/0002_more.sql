-- Version 2: usage by the second and by the session, and what pricing an entry again needs.

ALTER TABLE entry ADD COLUMN audio_seconds INTEGER NOT NULL DEFAULT 0 CHECK (audio_seconds >= 0);
ALTER TABLE entry ADD COLUMN code_session INTEGER NOT NULL DEFAULT 0 CHECK (code_session >= 0);
ALTER TABLE entry ADD COLUMN more TEXT;        -- JSON of what few entries have (speed, geo, sent, parts, by, estimated), or NULL

-- A cell's sums stand in the order of the usage kinds: the table is laid anew.
CREATE TABLE cell_2 (
  period         TEXT    NOT NULL,
  scope          TEXT    NOT NULL,
  start_us       INTEGER NOT NULL,
  project        TEXT    NOT NULL,
  id             TEXT    NOT NULL,
  provider       TEXT    NOT NULL,
  model          TEXT    NOT NULL,
  calls          INTEGER NOT NULL,
  attempts       INTEGER NOT NULL,
  errors         INTEGER NOT NULL,
  input          INTEGER NOT NULL,
  cache_read     INTEGER NOT NULL,
  cache_write_5m INTEGER NOT NULL,
  cache_write_1h INTEGER NOT NULL,
  output         INTEGER NOT NULL,
  input_audio    INTEGER NOT NULL,
  cache_read_audio INTEGER NOT NULL,
  output_audio   INTEGER NOT NULL,
  input_image    INTEGER NOT NULL,
  output_image   INTEGER NOT NULL,
  web_search     INTEGER NOT NULL,
  file_search    INTEGER NOT NULL,
  audio_seconds  INTEGER NOT NULL,
  code_session   INTEGER NOT NULL,
  reasoning      INTEGER NOT NULL,
  amount_nanos   INTEGER NOT NULL,
  inexact_nanos  INTEGER NOT NULL,             -- the part of amount_nanos that is not `priced`
  unpriced       INTEGER NOT NULL,             -- entries of unknown amount
  PRIMARY KEY (period, scope, start_us, project, id, provider, model)
) STRICT, WITHOUT ROWID;
INSERT INTO cell_2
SELECT period, scope, start_us, project, id, provider, model, calls, attempts, errors, input, cache_read, cache_write_5m,
  cache_write_1h, output, input_audio, cache_read_audio, output_audio, input_image, output_image, web_search, file_search,
  0, 0, reasoning, amount_nanos, inexact_nanos, unpriced
FROM cell;
DROP TABLE cell;
ALTER TABLE cell_2 RENAME TO cell;
