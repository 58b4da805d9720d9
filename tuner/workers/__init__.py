"""Processes that compile and measure candidates, within limits, and may die."""
