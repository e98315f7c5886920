"""Whole runs, each reading like its section of the paper."""
