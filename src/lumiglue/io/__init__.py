"""Files that others wrote or that a fault may interrupt: text and JSON, HDF5, downloads, whole writes."""
