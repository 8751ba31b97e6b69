"""Parameters, errors, model folders, publishing of results, devices, environment variables: used by every stage."""
