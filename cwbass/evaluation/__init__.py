"""How a model is scored: probabilities of an image, streaming counts, one pass over a dataset."""
