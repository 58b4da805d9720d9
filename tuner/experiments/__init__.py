"""Model settings against a quality: slots, and how a cheap measure relates to a trained one."""
