"""Trace databases: schema v3, one writer, a reader, the ledger of finished runs, and the trace's wire form."""
