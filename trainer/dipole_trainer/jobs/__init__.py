"""The store of jobs: states, leases, events, the ledger of rankings."""
