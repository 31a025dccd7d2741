"""The modules behind the scripts. None is about transformers: skip them on a first reading."""
