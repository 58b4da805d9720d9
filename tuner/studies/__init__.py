"""Optuna's studies: where they are stored, and what is done about damaged ones."""
