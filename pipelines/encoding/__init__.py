"""The encode job: its units and its rejects."""
