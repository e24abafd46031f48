"""Planning in the world model."""
