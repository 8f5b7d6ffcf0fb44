"""How good images are: distances between sets of images, and measures of pairs."""
