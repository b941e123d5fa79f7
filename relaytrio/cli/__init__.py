"""The command `relaytrio`. Needs the extra `demo`; nothing is re-exported here: the package loads without it."""
