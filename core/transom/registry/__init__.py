"""Names to implementations: what is installed, what it declares, whether it can serve, and what was chosen.

Listing reads data, resolving explains itself, only the chosen object is imported. This package knows nothing about
transformers: it never imports torch nor `transom.transformer`.
"""
