"""Files on disk: folders that cannot be left, atomic replacement, locks, safetensors, caches."""
