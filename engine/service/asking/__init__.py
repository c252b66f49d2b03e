"""A question to a searcher: codes or images in, answers with their stored items out."""
