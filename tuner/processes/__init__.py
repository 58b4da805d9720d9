"""The processes of a run: the command that starts one, and interruptions that cannot get lost."""
