"""A question to a searcher: codes or images in, answers with what is stored of them out."""
