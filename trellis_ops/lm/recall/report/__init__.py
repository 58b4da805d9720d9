"""Pages, tables and plots of recall studies."""
