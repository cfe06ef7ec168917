"""VMs, disks and budgets: the ledger, and the operations that tie it to storage."""
