"""Templates at run time: built, filled by clients, snapshotted, registered."""
