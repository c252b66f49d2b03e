"""What a collection of some size takes, from what this machine was measured to do."""
