"""Conditions on attributes, in the words of SQL, that say which rows may answer."""
