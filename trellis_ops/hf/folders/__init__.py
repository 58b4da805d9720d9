"""Folders of transformers: converted from models of this project and back, read, and loaded by other programs."""
