"""What a person sees of a search: progress, a page, figures."""
