"""How the embedded default model was made: corpus, tokenizer, training, evaluation, export."""
