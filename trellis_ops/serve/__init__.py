"""Serving: what keeps many sequences of a model, on one machine or many."""
