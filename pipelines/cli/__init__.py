"""The command `hashlight`."""
