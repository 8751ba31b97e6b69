"""The procedural set `scenes`: its pictures and its descriptor."""
