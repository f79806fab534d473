"""Text to token ids and back: tokenizers, and decoding of ids that arrive one by one."""
