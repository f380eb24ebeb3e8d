"""Stage one: teachers run once, their features go into a store."""
