"""Background work: one job for each decision that takes time, one file for each job."""
