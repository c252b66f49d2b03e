"""The losses that training minimises, one per file: a pure function, and the module that training calls."""
