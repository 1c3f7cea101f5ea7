"""Training a matcher on any folder of photos: feature datasets, labels, losses and the loop."""
