"""What training minimises: one loss a file, as a pure function and as the module that training calls."""
