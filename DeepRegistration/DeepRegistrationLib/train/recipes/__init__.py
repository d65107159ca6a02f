"""One recipe a file; see ``train.recipe``."""
