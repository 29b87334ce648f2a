"""How it learns: ledger, training, judgement, registry, and the way back to the replicas."""
