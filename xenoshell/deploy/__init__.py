"""Quote, plan, deployment: pure planning, one engine, typed events, the record on disk."""
