"""The parts that all stages share: exit status, working files, fingerprints, paths, loader, metrics."""
