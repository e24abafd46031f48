"""One model for many tasks."""
