"""The embedded store: one file, one writer thread, group commit; and the journal, which is such a file for another store."""
