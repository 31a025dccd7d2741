"""What the scripts stand on. Nothing here is about transformers: a first reading may skip it."""
