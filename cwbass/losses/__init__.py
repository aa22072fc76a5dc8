"""Pure tensor functions, one idea a file: tensors in, a scalar out."""
