"""One job from images to a collection: a sample is looked at, an encoder chosen and fitted, codes made and built."""
