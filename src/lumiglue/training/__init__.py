"""Training a matcher on any folder of photos: feature banks, labels, losses and the loop."""
