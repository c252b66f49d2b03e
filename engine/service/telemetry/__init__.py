"""What a server tells its operators."""
