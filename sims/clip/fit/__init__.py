"""A training run: prepare (records, tokenizer), training (the loop), trained (read back), metrics (the log), speed."""
