"""Files: read and replaced as a whole, and known by a digest of what they hold."""
