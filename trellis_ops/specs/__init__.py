"""Specs in files: workloads that somebody wrote, and those that were recorded while they ran."""
