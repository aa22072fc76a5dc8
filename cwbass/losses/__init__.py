"""Pure tensor functions, one idea a file: tensors in, a tensor out."""
