"""Folders as Hugging Face's transformers writes and reads them: a config, weights, a tokenizer.

Each family of models is a module of its own: a table of how its config's fields are called here and there, and the
layout map of its weights. The package transformers is not needed.
"""
