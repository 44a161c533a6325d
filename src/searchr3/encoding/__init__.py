"""A whole corpus to vectors on disk: in shards, by one process or many, going on where it was stopped."""
