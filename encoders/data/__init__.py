"""Images and what is known of them: decoding, preprocessing, augmentation, supervision."""
