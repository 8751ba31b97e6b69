"""`make chaos`: kills, full and read-only disks, and a faulty S3 remote, each followed by a run that must end in the same bytes."""
