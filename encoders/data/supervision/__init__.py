"""What training knows about similarity: labels of the images, a list of pairs, or nothing but the images."""
