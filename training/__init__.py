"""Training of the built-in model: world -> tokenizer -> transformer -> pipeline folder. See training/README.md."""
