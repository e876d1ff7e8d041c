"""A hospital's site: its site file, and the commands that draft a manifest and check the data."""
