"""The session file: model, load, save, validation."""
