"""Storage, table schemas, idempotent commits, the video catalogue, SQL and maintenance."""
