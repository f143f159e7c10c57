"""Expert / anti-expert decoding."""
