"""Storage, table schemas, idempotent commits, the video catalog, SQL and maintenance."""
