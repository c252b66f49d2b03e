"""Images and their supervision: decoding, preprocessing, augmentation, labels and pairs."""
