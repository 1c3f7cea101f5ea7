"""Checked reading and atomic writing: text and JSON, HDF5, state dicts, downloads."""
