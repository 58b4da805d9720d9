"""Rules beside the references of other projects, as installed: the optional packages `peers`."""
