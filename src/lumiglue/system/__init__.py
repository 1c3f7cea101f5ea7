"""The machine: devices and memory, the cache folder, optional packages."""
