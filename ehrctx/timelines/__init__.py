"""Events -> integer timelines: vocabulary, tokenizer, memory-mapped store, windows."""
