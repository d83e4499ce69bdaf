-- Version 1 of the ledger. Units: *_us UTC microseconds, *_nanos nano-dollars, all else counts.
-- An entry is never changed. Cells and balances are sums over entries and can be computed again (apply.sql, `verify`).

CREATE TABLE entry (
  seq            INTEGER PRIMARY KEY,
  project        TEXT    NOT NULL,
  id             TEXT    NOT NULL,             -- the attempt: unique in its project
  revision       INTEGER NOT NULL,             -- 0, then one more for each correction
  sign           INTEGER NOT NULL CHECK (sign IN (1, -1)),
  call           TEXT    NOT NULL,
  attempt        INTEGER NOT NULL,
  calls          INTEGER NOT NULL CHECK (calls IN (0, 1)),
  at_us          INTEGER NOT NULL,             -- when it was reserved: fixes every window
  agent          TEXT,
  session        TEXT,
  user           TEXT,
  key            TEXT,
  tags           TEXT,                         -- JSON array or NULL
  other          TEXT,                         -- JSON array of the scopes counted under _other, or NULL
  dialect        TEXT    NOT NULL,
  provider       TEXT    NOT NULL,
  model          TEXT    NOT NULL,             -- asked for
  served         TEXT    NOT NULL,
  tier           TEXT,
  outcome        TEXT    NOT NULL,
  http_status    INTEGER,
  input          INTEGER NOT NULL CHECK (input >= 0),
  cache_read     INTEGER NOT NULL CHECK (cache_read >= 0),
  cache_write_5m INTEGER NOT NULL CHECK (cache_write_5m >= 0),
  cache_write_1h INTEGER NOT NULL CHECK (cache_write_1h >= 0),
  output         INTEGER NOT NULL CHECK (output >= 0),
  input_audio    INTEGER NOT NULL CHECK (input_audio >= 0),
  cache_read_audio INTEGER NOT NULL CHECK (cache_read_audio >= 0),
  output_audio   INTEGER NOT NULL CHECK (output_audio >= 0),
  input_image    INTEGER NOT NULL CHECK (input_image >= 0),
  output_image   INTEGER NOT NULL CHECK (output_image >= 0),
  web_search     INTEGER NOT NULL CHECK (web_search >= 0),
  file_search    INTEGER NOT NULL CHECK (file_search >= 0),
  reasoning      INTEGER NOT NULL CHECK (reasoning >= 0),
  amount_nanos   INTEGER CHECK (amount_nanos >= 0),   -- NULL: unknown, never 0
  computed_nanos INTEGER CHECK (computed_nanos >= 0),
  reported_nanos INTEGER CHECK (reported_nanos >= 0),
  status         TEXT    NOT NULL CHECK (status IN ('priced', 'partial', 'unpriced', 'estimated')),
  price_version  TEXT    NOT NULL,
  terms          TEXT    NOT NULL,             -- JSON: the unit prices used
  missing        TEXT,                         -- JSON array or NULL
  latency_ms     INTEGER,
  note           TEXT,
  UNIQUE (project, id, revision, sign)
) STRICT;
CREATE INDEX entry_at ON entry (at_us);

CREATE TABLE hold (
  id             TEXT    PRIMARY KEY,
  doc            TEXT    NOT NULL              -- JSON of the Hold
) STRICT, WITHOUT ROWID;

CREATE TABLE cell (
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
  reasoning      INTEGER NOT NULL,
  amount_nanos   INTEGER NOT NULL,
  inexact_nanos  INTEGER NOT NULL,             -- the part of amount_nanos that is not `priced`
  unpriced       INTEGER NOT NULL,             -- entries of unknown amount
  PRIMARY KEY (period, scope, start_us, project, id, provider, model)
) STRICT, WITHOUT ROWID;

CREATE TABLE balance (
  scope          TEXT    NOT NULL,
  measure        TEXT    NOT NULL,
  period         TEXT    NOT NULL,             -- the budget's window
  timezone       TEXT    NOT NULL,
  project        TEXT    NOT NULL,
  id             TEXT    NOT NULL,
  start_us       INTEGER NOT NULL,
  end_us         INTEGER NOT NULL,
  spent          INTEGER NOT NULL,             -- nanos, tokens or requests
  PRIMARY KEY (scope, measure, period, timezone, project, id, start_us)
) STRICT, WITHOUT ROWID;

CREATE TABLE shape (                           -- what balances are kept for
  scope          TEXT    NOT NULL,
  measure        TEXT    NOT NULL,
  period         TEXT    NOT NULL,
  timezone       TEXT    NOT NULL,
  PRIMARY KEY (scope, measure, period, timezone)
) STRICT, WITHOUT ROWID;

CREATE TABLE mark (
  name           TEXT    PRIMARY KEY,
  value          INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO mark VALUES
  ('batch', 0),                                -- number of the last batch applied
  ('rolled', 0),                               -- last entry that the cells hold
  ('hour', 0), ('day', 0), ('month', 0), ('entry', 0), ('balance', 0);   -- pruned before this instant
