"""From trace databases to a training set: selection in SQL, JSONL, manifest and data card."""
