"""The reference model with any rule: what a layer makes for it, and its mixer."""
