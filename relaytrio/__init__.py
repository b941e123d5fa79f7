"""relaytrio: one stream per viewer, for chat backends that run on several replicas."""
